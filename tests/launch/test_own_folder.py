"""A run's folder belongs to one process, and what a resume takes over is the config's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from xtdist.checkpoint.lease import Lease
from xtdist.config import ConfigError, ResourceError
from xtdist.launch import trainer
from xtdist.launch.preflight import local_path
from xtdist.track.mlflow import tracking_uri
from xtdist.train.spec import CheckpointSpec


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.setattr(trainer, "to_mapping", lambda spec: {"name": "r"})
    monkeypatch.setattr(trainer, "Lease", partial(Lease, expiry_s=0.5))
    return SimpleNamespace(
        folder=tmp_path / "runs" / "r", spec=SimpleNamespace(checkpoint=CheckpointSpec())
    )


def test_two_processes_can_not_train_one_run(plan: SimpleNamespace) -> None:
    with trainer._own_folder(plan):
        before = (plan.folder / "config.yaml").stat()
        with pytest.raises(ResourceError, match="is training this run"), trainer._own_folder(plan):
            pytest.fail("it was entered")
        assert (plan.folder / "config.yaml").stat().st_ino == before.st_ino
    with trainer._own_folder(plan):
        pass


def test_a_folder_below_a_file_is_a_users_mistake(plan: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ResourceError, match="can't be written"), trainer._own_folder(plan):
        pytest.fail("it was entered")


def test_an_error_inside_is_not_taken_for_the_folders(plan: SimpleNamespace) -> None:
    with pytest.raises(PermissionError), trainer._own_folder(plan):
        raise PermissionError(1, "of something else")


def test_a_url_is_not_a_folder_here() -> None:
    with pytest.raises(ConfigError, match="output: got 's3://b/x'"):
        local_path("output", "s3://b/x")
    for value in ("/a" + "x" * 600, "/a\0b", "~nobody-of-that-name/x"):
        with pytest.raises(ConfigError, match="output: got "):
            local_path("output", value)
    assert local_path("output", "~/x") == Path.home() / "x"


@pytest.mark.parametrize("name", ["a%20b", "a?b", "it's"])
def test_a_path_that_mlflow_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="MLflow's store"):
        tracking_uri(None, tmp_path / name)
    assert tracking_uri(None, tmp_path / "a b#c").endswith("a b#c/mlflow.db")
