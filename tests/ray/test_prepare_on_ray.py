"""A dataset built by the tasks of a Ray cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cluster_tools import Cluster

from xtdist.data.build.ray_tasks import _sees

pytestmark = pytest.mark.ray


def test_the_cluster_builds_the_dataset_that_one_process_builds(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "text").mkdir()
    for i in range(60):
        (tmp_path / "text" / f"{i}.txt").write_text(f"{i % 50} cats sat on mats; " * (i % 50 + 1))
    config = {
        "output": str(tmp_path / "one"),
        "source": {"kind": "files", "path": str(tmp_path / "text")},
        "tokenizer": {"kind": "bpe", "vocab_size": 280},
        "valid_fraction": 0.2,
        "unit_bytes": 10_000,
        "runner": {"kind": "local", "workers": 1},
    }
    path = tmp_path / "prepare.yaml"
    path.write_text(yaml.safe_dump(config))
    for words in ([], ["runner={kind: ray}", f"output={tmp_path / 'ray'}"]):
        ended = cluster.xtdist("prepare", str(path), *words)
        assert ended.code == 0, ended.err
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "ray" / file.name).read_bytes()
    bad = tmp_path / "text" / "9.txt"
    bad.write_bytes(b"ab\xff")
    ended = cluster.xtdist("prepare", str(path), "runner={kind: ray}", f"output={tmp_path / 'x'}")
    assert ended.code == 2
    assert f"{bad}: not UTF-8 text (byte 2)" in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "x").exists()


def test_a_folder_that_is_not_shared_is_seen_as_such(tmp_path: Path) -> None:
    (tmp_path / "probe").write_text("word")
    assert _sees(str(tmp_path / "probe"), "word")
    assert not _sees(str(tmp_path / "probe"), "another")
    assert not _sees(str(tmp_path / "missing"), "word")
