"""``models:/name@alias``: what it means now, from MLflow's own registry."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from tiny_server import save_tiny

from xtdist.checkpoint import read_manifest
from xtdist.checkpoint.layout import hash_file, write_manifest
from xtdist.cli.main import main
from xtdist.config import CheckpointError, ConfigError, ResourceError, digest
from xtdist.serve import AppConfig, ServedModel
from xtdist.serve.loading import resolve
from xtdist.serve.places import check_served, locate
from xtdist.serve.replica import Replica
from xtdist.track.registry import find_version


@pytest.fixture
def registry(empty_mlflow, tmp_path, monkeypatch):
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture
def weights(tmp_path):
    return [save_tiny(tmp_path / f"w{seed}", seed=seed) for seed in (1, 2)]


def named(place):
    return ServedModel(name="tiny", weights=place)


def test_an_alias_means_the_version_that_was_registered_last(registry, weights, capsys):
    for number, folder in enumerate(weights, 1):
        assert main(["register", str(folder), "demo@best"]) == 0
        assert f"models:/demo/{number} and models:/demo@best" in capsys.readouterr().out
        (found,) = check_served(named("models:/demo@best"))
        assert found.digest == digest(read_manifest(folder))
        assert locate(named("models:/demo@best")).weights == f"models:/demo/{number}"
    (first,) = check_served(named("models:/demo/1"))
    assert first.folder == weights[0]


def test_a_replica_follows_an_alias(registry, weights):
    main(["register", str(weights[0]), "demo@best"])
    spec = ServedModel(name="tiny", weights="models:/demo@best", follow=True)
    replica = Replica(AppConfig(models=(spec,), registry=registry, reload_every_s=0.05))

    async def scene():
        await replica.reconfigure({})
        main(["register", str(weights[1]), "demo@best"])
        async with asyncio.timeout(60):
            while not replica.backend.reloads["tiny"]:
                await asyncio.sleep(0.02)
        return replica.backend.find("tiny").digest

    assert asyncio.run(scene()) == digest(read_manifest(weights[1]))
    replica.__del__()


def test_replicas_find_the_registry_from_another_folder(registry, weights, tmp_path, monkeypatch):
    main(["register", str(weights[0]), "demo@best"])
    models = (named("models:/demo@best"),)
    from_environment = resolve(AppConfig(models=models))
    assert (from_environment.registry, from_environment.models[0].weights) == (
        registry,
        "models:/demo/1",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    relative = resolve(AppConfig(models=models, registry="sqlite:///mlflow.db"))
    assert relative.registry == registry


def test_weights_that_changed_since_they_were_registered_are_refused(registry, weights):
    main(["register", str(weights[0]), "demo@best"])
    shutil.copy(weights[1] / "model.safetensors", weights[0])
    manifest = read_manifest(weights[0])
    entry = hash_file(weights[0] / "model.safetensors")
    write_manifest(weights[0], {**manifest.files, "model.safetensors": entry}, manifest.meta)
    with pytest.raises(CheckpointError, match="changed since"):
        check_served(named("models:/demo@best"))


def test_a_version_made_of_artifacts_is_fetched(registry, weights, tmp_path, monkeypatch):
    """As somebody without this program makes one: files of a run, and a version of them."""
    from mlflow import MlflowClient

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    client = MlflowClient(tracking_uri=registry)
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "store").as_uri())
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, str(weights[0]), "model")
    client.create_registered_model("other")
    client.create_model_version("other", f"runs:/{run.info.run_id}/model", run.info.run_id)
    (found,) = check_served(named("models:/other/1"))
    assert found.digest == digest(read_manifest(weights[0]))
    assert found.folder.is_relative_to(tmp_path / "home")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("models:/demo", "write it as models:/name@alias"),
        ("models:/demo@", "write it as models:/name@alias"),
        ("models:/demo/latest", "write it as models:/name@alias"),
        ("models:/nothing@best", "not in the registry"),
        ("models:/nothing/1", "not in the registry"),
    ],
)
def test_a_model_that_is_not_there_is_named(registry, place, said):
    with pytest.raises(ConfigError, match=said):
        check_served(named(place))


def test_without_an_address_or_an_answer_it_says_so(weights, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="which registry"):
        find_version("models:/demo@best")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ResourceError, match="does not answer"):
        find_version("models:/demo@best", registry="http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["demo@", "@best", "a/b", "demo@a@b"])
def test_a_name_that_no_uri_can_hold_is_refused(registry, weights, capsys, name):
    assert main(["register", str(weights[0]), name]) == 2
    assert "error: register" in capsys.readouterr().err
