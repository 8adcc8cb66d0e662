"""From weights folders and YAML to an application, without starting Ray."""

from __future__ import annotations

import argparse
import json
import shutil
import socket
from pathlib import Path

import pytest
import yaml
from tiny_server import Http, free_port, save_tiny

from xtdist.checkpoint import read_manifest
from xtdist.checkpoint.layout import write_manifest
from xtdist.cli import serve as cli
from xtdist.config import CheckpointError, ConfigError, ResourceError, from_mapping, to_mapping
from xtdist.data.tokenizer.byte_bpe import ByteBpeTokenizer
from xtdist.serve import AppConfig, ServeConfig, ServedModel, check, new_key, run
from xtdist.serve.check import check_port
from xtdist.serve.replica import Replica

REPO = Path(__file__).parents[2]


@pytest.fixture
def weights(tmp_path):
    return save_tiny(tmp_path / "expert", seed=1)


@pytest.fixture
def config(weights):
    return ServeConfig(models=(ServedModel(name="tiny", weights=str(weights)),), port=free_port())


def start(config):
    """A replica in this process, as Ray Serve starts one."""
    replica = Replica(config)
    http = Http(replica.__serve_build_asgi_app__())
    http.runner.run(replica.reconfigure({}))
    return replica, http


def test_a_replica_answers_from_a_weights_folder_and_names_the_weights(weights, tmp_path):
    other = save_tiny(tmp_path / "other", seed=2, dim=16)
    models = (
        ServedModel(name="one", weights=str(weights), amateur=str(other)),
        ServedModel(name="two", weights=str(other)),
    )
    replica, http = start(AppConfig(models=models))
    listed = http.request("GET", "/v1/models").json()["data"]
    assert [(m["id"], m["contrastive"]) for m in listed] == [("one", True), ("two", False)]
    one, two = (http.complete(model=m, prompt="x", seed=1).json() for m in ("one", "two"))
    assert one["choices"] != two["choices"]
    assert one["system_fingerprint"] != two["system_fingerprint"]
    contrast = {"prompt": "x", "contrastive": {}}
    assert http.complete(model="one", **contrast).status_code == 200
    refused = http.complete(model="two", **contrast)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "contrastive")
    replica.check_health()
    replica.backend.models[1].thread.broken = True
    with pytest.raises(RuntimeError, match="engine of two"):
        replica.check_health()
    replica.__del__()


def test_checking_resolves_every_path(config, weights, monkeypatch):
    monkeypatch.chdir(weights.parent)
    relative = ServeConfig(models=(ServedModel(name="tiny", weights="expert"),), port=config.port)
    assert check(relative) == check(config)
    assert check(config).models[0].weights == str(weights.resolve())


def test_a_port_in_use_is_named_before_anything_starts(config):
    with socket.socket() as s:
        s.bind((config.host, config.port))
        s.listen()
        with pytest.raises(ResourceError, match=f"127.0.0.1:{config.port}: can't listen there"):
            run(config)


def test_a_host_of_another_machine_is_refused(config):
    with pytest.raises(ResourceError, match=r"192\.0\.2\.1"):
        check_port("192.0.2.1", config.port)


def test_a_host_that_others_reach_needs_keys(config, tmp_path):
    open_to_all = {**to_mapping(config), "host": "0.0.0.0"}
    with pytest.raises(ConfigError, match="api_keys_file"):
        check(from_mapping(ServeConfig, open_to_all))
    _, line = new_key("me")
    (tmp_path / "keys").write_text(line + "\n")
    keyed = {**open_to_all, "api_keys_file": str(tmp_path / "keys")}
    assert check(from_mapping(ServeConfig, keyed)).host == "0.0.0.0"


def test_missing_weights_are_named(config, tmp_path):
    gone = ServeConfig(models=(ServedModel(name="a", weights=str(tmp_path / "no")),), port=9)
    with pytest.raises(CheckpointError, match="no weights there"):
        check(from_mapping(ServeConfig, {**to_mapping(gone), "port": config.port}))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_changed_byte_is_refused_before_the_file_is_used(config, weights, name):
    raw = bytearray((weights / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (weights / name).write_bytes(bytes(raw))
    with pytest.raises(CheckpointError, match=name):
        check(config)


def test_changed_tensors_do_not_load(config, weights):
    raw = bytearray((weights / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (weights / "model.safetensors").write_bytes(bytes(raw))
    with pytest.raises(CheckpointError, match="safetensors"):
        start(config)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_manifest_that_does_not_list_a_file_is_refused(config, weights, name):
    manifest = read_manifest(weights)
    files = {file: entry for file, entry in manifest.files.items() if file != name}
    write_manifest(weights, files, manifest.meta)
    with pytest.raises(CheckpointError, match=f"does not list {name}"):
        check(config)


@pytest.mark.parametrize(
    "option",
    ["--amateur=w", "--name=a", "--host=0.0.0.0", "--port=1", "--api-keys-file=k"],
)
def test_an_option_beside_a_config_file_is_refused_not_dropped(option):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    with pytest.raises(ConfigError, match=f"{option.partition('=')[0]} does not go with --config"):
        cli.run(parser.parse_args(["--config", "serve.yaml", option]))


def test_an_amateur_with_another_tokenizer_is_refused(config, weights, tmp_path):
    tokenizer = ByteBpeTokenizer(merges=[(b"a", b"b")])
    other = save_tiny(tmp_path / "other", seed=2, tokenizer=tokenizer)
    pair = ServedModel(name="tiny", weights=str(weights), amateur=str(other))
    with pytest.raises(CheckpointError, match="another tokenizer"):
        start(AppConfig(models=(pair,)))


def test_an_amateur_of_a_model_that_fills_masks_is_refused(weights, tmp_path):
    filler = str(save_tiny(tmp_path / "nar", seed=2, objective="nonautoregressive"))
    for pair in ((filler, str(weights)), (str(weights), filler)):
        spec = ServedModel(name="nar", weights=pair[0], amateur=pair[1])
        with pytest.raises(CheckpointError, match="which fills masks"):
            start(AppConfig(models=(spec,)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "name at least one model"),
        ({"modles": []}, "did you mean 'models'"),
        ({"port": 70000}, "at most 65535"),
        ({"port": "8000"}, "port"),
        ({"limits": {"max_token": 5}}, "did you mean 'max_tokens'"),
        ({"engine": {"max_waiting": 2}}, "max_prompts"),
        ({"models": [{"name": "a", "weights": "w"}] * 2}, "names should differ"),
    ],
)
def test_a_wrong_config_is_explained(change, message):
    good = {"models": [{"name": "a", "weights": "w"}]}
    from_mapping(ServeConfig, good)
    with pytest.raises(ConfigError, match=message):
        from_mapping(ServeConfig, {**good, **change})


def test_the_app_builder_checks_its_arguments(weights):
    from ray.serve.exceptions import RayServeException

    from xtdist.serve.app import build

    app = build({"models": [{"name": "a", "weights": str(weights)}], "replicas": 2, "cpus": 3})
    deployment = app._bound_deployment
    assert deployment.num_replicas == 2
    assert deployment.ray_actor_options["num_cpus"] == 3
    assert deployment.max_ongoing_requests > 72
    with pytest.raises(RayServeException, match="args: port: unknown key"):
        build({"models": [{"name": "a", "weights": str(weights)}], "port": 8000})
    with pytest.raises(RayServeException, match="no weights there"):
        build({"models": [{"name": "a", "weights": "w"}]})


@pytest.mark.parametrize("path", sorted((REPO / "jobs/configs").glob("serve_*.yaml")), ids=str)
def test_every_serve_yaml_is_valid_for_ray_and_for_us_and_stays_on_this_machine(path):
    from ray.serve.schema import ServeDeploySchema

    tree = yaml.safe_load(path.read_text())
    schema = ServeDeploySchema.model_validate(tree)
    assert schema.http_options.host == "127.0.0.1"
    assert "host" in tree["http_options"]  # Ray's default in a YAML is 0.0.0.0
    for app in schema.applications:
        assert app.import_path == "xtdist.serve.app:build"
        from_mapping(AppConfig, app.args)


def test_there_is_a_serve_yaml():
    assert (REPO / "jobs/configs/serve_demo.yaml").is_file()


def test_weights_copied_alone_serve(config, weights, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.move(weights, moved)
    replica, http = start(AppConfig(models=(ServedModel(name="tiny", weights=str(moved)),)))
    reply = http.complete(prompt="x")
    assert json.loads(reply.content)["model"] == "tiny"
    replica.__del__()


def test_int8_weights_are_served_from_a_cpu_and_refused_elsewhere(weights):
    models = (ServedModel(name="tiny", weights=str(weights)),)
    found = []
    for dtype in ("float32", "int8"):
        replica, http = start(AppConfig(models=models, dtype=dtype))
        reply = http.complete(prompt="x", seed=1, max_tokens=1, logprobs=1, temperature=0).json()
        found.append(reply["choices"][0]["logprobs"]["token_logprobs"][0])
        replica.__del__()
    assert found[1] == pytest.approx(found[0], rel=0.05)
    assert found[0] != found[1]
    with pytest.raises(ConfigError, match="int8 with gpus 1"):
        AppConfig(models=models, dtype="int8", gpus=1)
