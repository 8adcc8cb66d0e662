"""Terraform for EKS and GKE: formatted, described, pinned, closed and encrypted; what its variables
refuse is asked of Terraform itself. (Providers can't be had here: that each argument of a resource
exists was looked up in their documentation, no test does it.)"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from validators import module, program

ROOT = Path(__file__).parents[2] / "infra/terraform"
FOLDERS = ("eks", "gke")
each = pytest.mark.parametrize("folder", FOLDERS)
Blocks = dict[str, list[tuple[str, dict[str, Any]]]]


def plain(tree: Any) -> Any:
    """What python-hcl2 reads, without the quotes and marks that it keeps."""
    if isinstance(tree, dict):
        return {plain(k): plain(v) for k, v in tree.items() if not k.startswith("__")}
    if isinstance(tree, list):
        return [plain(item) for item in tree]
    return tree.strip('"') if isinstance(tree, str) else tree


@functools.cache
def read(folder: str) -> Blocks:
    """Blocks by their kind: (name, body), a resource's name is ``type.name``."""
    module("hcl2", get="pip install python-hcl2")
    import hcl2

    blocks: Blocks = {}
    for file in sorted((ROOT / folder).glob("*.tf")):
        for kind, bodies in plain(hcl2.loads(file.read_text())).items():
            for body in bodies if isinstance(bodies, list) else [bodies]:
                name = ""
                while kind in ("resource", "data", "variable", "output") and (
                    name.count(".") < (kind in ("resource", "data")) or not name
                ):
                    ((label, body),) = body.items()
                    name = f"{name}.{label}" if name else label
                blocks.setdefault(kind, []).append((name, body))
    return blocks


def resources(folder: str, kind: str) -> dict[str, dict[str, Any]]:
    found = {n: b for n, b in read(folder)["resource"] if n.split(".")[0] == kind}
    assert found, kind
    return found


def one(folder: str, kind: str) -> dict[str, Any]:
    (body,) = resources(folder, kind).values()
    return body


@each
def test_files_are_formatted(folder: str) -> None:
    terraform = program("terraform", get="https://developer.hashicorp.com/terraform/install")
    done = subprocess.run(
        [terraform, "fmt", "-check", "-diff", str(ROOT / folder)],
        env={k: v for k, v in os.environ.items() if k != "TF_CLI_CONFIG_FILE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@each
def test_every_variable_and_output_is_described(folder: str) -> None:
    blocks = read(folder)
    for kind in ("variable", "output"):
        for name, body in blocks[kind]:
            assert len(body["description"]) > 20, name
            assert kind == "output" or body["type"], name
    outputs = {name for name, _ in blocks["output"]}
    assert {"cluster_name", "region", "bucket", "service_account_annotations"} <= outputs


@each
def test_every_variable_is_used_and_every_one_that_is_used_exists(folder: str) -> None:
    texts = {f.name: f.read_text() for f in (ROOT / folder).glob("*.tf")}
    declared = {name for name, _ in read(folder)["variable"]}
    elsewhere = "".join(text for name, text in texts.items() if name != "variables.tf")
    assert set(re.findall(r"\bvar\.(\w+)", elsewhere)) == declared


@each
def test_every_resource_that_is_named_exists(folder: str) -> None:
    blocks = read(folder)
    declared = {name for name, _ in blocks["resource"]}
    sources = {f"data.{name}" for name, _ in blocks["data"]}
    prefix = {"eks": "aws_", "gke": "google_"}[folder]
    for file in (ROOT / folder).glob("*.tf"):
        text = re.sub(r"#.*", "", file.read_text())
        for mark, name in re.findall(rf"(data\.)?\b({prefix}\w+\.\w+)", text):
            assert f"{mark}{name}" in declared | sources, f"{file.name}: {mark}{name}"


@each
def test_versions_are_pinned_and_state_is_kept_remotely(folder: str) -> None:
    ((_, settings),) = read(folder)["terraform"]
    assert settings["required_version"].startswith(">= 1.9")
    for needs in settings["required_providers"]:
        for provider in needs.values():
            assert re.fullmatch(r"~> \d+\.\d+", provider["version"])
            assert provider["source"].startswith("hashicorp/")
    (backend,) = settings["backend"]
    assert set(backend) == {{"eks": "s3", "gke": "gcs"}[folder]}


@each
def test_no_rule_lets_the_whole_internet_in(folder: str) -> None:
    text = "".join(f.read_text() for f in (ROOT / folder).glob("*.tf"))
    for name, body in read(folder)["resource"]:
        assert "ingress" not in body, f"{name}: rules are resources of their own here"
        if re.search("ingress|firewall|security_group_rule", name):
            assert "0.0.0.0/0" not in str(body)
            assert "::/0" not in str(body)
    # The two places it may be in are routes out, of AWS's network.
    assert text.count("0.0.0.0/0") == {"eks": 2, "gke": 0}[folder]
    assert not re.search(r'(password|secret|token)\s*=\s*"[^"$]+"', text, re.IGNORECASE)


def test_eks_is_private_unless_addresses_are_given() -> None:
    (network,) = one("eks", "aws_eks_cluster")["vpc_config"]
    assert network["endpoint_private_access"] is True
    assert network["endpoint_public_access"] == "${length(var.api_cidrs) > 0}"
    assert "var.api_cidrs" in network["public_access_cidrs"]
    subnets = resources("eks", "aws_subnet")
    assert not any(body.get("map_public_ip_on_launch") for body in subnets.values())


def test_gke_is_private_unless_addresses_are_given() -> None:
    cluster = one("gke", "google_container_cluster")
    (private,) = cluster["private_cluster_config"]
    assert private["enable_private_nodes"] is True
    assert private["enable_private_endpoint"] == "${length(var.api_cidrs) == 0}"
    assert cluster["deletion_protection"] is True
    assert cluster["datapath_provider"] == "ADVANCED_DATAPATH"
    assert cluster["database_encryption"][0]["state"] == "ENCRYPTED"


def test_the_bucket_on_aws_is_private_versioned_and_encrypted() -> None:
    public = one("eks", "aws_s3_bucket_public_access_block")
    assert [value for value in public.values() if isinstance(value, bool)] == [True] * 4
    (versions,) = one("eks", "aws_s3_bucket_versioning")["versioning_configuration"]
    assert versions["status"] == "Enabled"
    (rule,) = one("eks", "aws_s3_bucket_server_side_encryption_configuration")["rule"]
    (default,) = rule["apply_server_side_encryption_by_default"]
    assert default["sse_algorithm"] == "aws:kms"
    assert one("eks", "aws_s3_bucket")["force_destroy"] is False
    assert one("eks", "aws_kms_key")["enable_key_rotation"] is True
    assert one("eks", "aws_efs_file_system")["encrypted"] is True
    (disk,) = one("eks", "aws_launch_template")["block_device_mappings"]
    assert disk["ebs"][0]["encrypted"] is True


def test_the_bucket_on_google_is_private_versioned_and_encrypted() -> None:
    bucket = one("gke", "google_storage_bucket")
    assert bucket["public_access_prevention"] == "enforced"
    assert bucket["uniform_bucket_level_access"] is True
    assert bucket["versioning"][0]["enabled"] is True
    assert bucket["encryption"][0]["default_kms_key_name"]
    assert bucket["force_destroy"] is False


def test_pods_take_roles_by_name_and_not_the_nodes() -> None:
    (metadata,) = one("eks", "aws_launch_template")["metadata_options"]
    assert (metadata["http_tokens"], metadata["http_put_response_hop_limit"]) == ("required", 1)
    documents = {n: b for n, b in read("eks")["data"] if n.endswith(".pods")}
    (trust,) = documents.values()
    (statement,) = trust["statement"]
    assert {c["test"] for c in statement["condition"]} == {"StringEquals"}
    assert len(statement["condition"]) == 2
    for pool in resources("gke", "google_container_node_pool").values():
        (config,) = pool["node_config"]
        assert config["workload_metadata_config"][0]["mode"] == "GKE_METADATA"


def test_gpu_nodes_carry_the_taints_that_the_manifests_tolerate() -> None:
    for group in (
        resources("eks", "aws_eks_node_group")["aws_eks_node_group.gpu"],
        resources("gke", "google_container_node_pool")["google_container_node_pool.gpu"][
            "node_config"
        ][0],
    ):
        assert [t["key"] for t in group["taint"]] == ["nvidia.com/gpu"]
        (more,) = group["dynamic"]
        assert more["taint"]["content"][0]["key"] == "xtdist/spot"
        assert "xtdist/pool" in str(group["labels"])


def plan(folder: str, tmp_path: Path, **values: str) -> str:
    """What Terraform says to ``values``: variables.tf alone needs no provider."""
    terraform = program("terraform", get="https://developer.hashicorp.com/terraform/install")
    shutil.copy(ROOT / folder / "variables.tf", tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "TF_CLI_CONFIG_FILE"}
    command = [terraform, "plan", "-no-color", "-input=false", "-lock=false"]
    command += [f"-var={name}={value}" for name, value in values.items()]
    for step in ([terraform, "init", "-no-color"], command):
        done = subprocess.run(
            step, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    return re.sub(r"[│\s]+", " ", done.stdout + done.stderr)


GOOD = {
    "eks": {"region": "eu-central-1", "bucket": "example-xtdist"},
    "gke": {
        "project": "my-project-1",
        "region": "europe-west4",
        "bucket": "example-xtdist",
        "gpu_pools": '{l4={machine_type="g2-standard-48",gpu_type="nvidia-l4",gpus=4,'
        'zones=["europe-west4-a"],spot=true,max=8}}',
    },
}
WRONG = {
    "eks": {
        "name": "Big_Name",
        "region": "Frankfurt",
        "zones": "1",
        "vpc_cidr": "8.8.0.0/16",
        "kubernetes_version": "1.9",
        "api_cidrs": '["0.0.0.0/0"]',
        "gpu_pools": '{p={instance_types=["g5.xlarge"],capacity="SPOTTY",max=4}}',
        "system_pool": "{min=3,max=2}",
        "bucket": "My_Bucket",
        "old_versions_days": "0",
        "service_accounts": '["*"]',
    },
    "gke": {
        "project": "P",
        "name": "Big_Name",
        "region": "europe-west4-a",
        "release_channel": "LATEST",
        "ranges": '{nodes="8.8.0.0/16"}',
        "api_cidrs": '["0.0.0.0/0"]',
        "gpu_pools": '{p={machine_type="g2",gpu_type="l4",gpus=3,zones=["a"],spot=true,max=4}}',
        "system_pool": "{min=3,max=2}",
        "bucket": "My_Bucket",
        "old_versions_days": "0",
        "service_accounts": '["*"]',
    },
}


@each
def test_good_values_are_taken(folder: str, tmp_path: Path) -> None:
    said = plan(folder, tmp_path, **GOOD[folder])
    assert "Error" not in said
    assert "No changes" in said


@each
def test_wrong_values_are_refused_each_by_its_name(folder: str, tmp_path: Path) -> None:
    said = plan(folder, tmp_path, **WRONG[folder])
    for name in WRONG[folder]:
        assert f" {name}: " in said, name
    assert said.count("Invalid value for variable") == len(WRONG[folder])
