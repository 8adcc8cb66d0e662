"""cluster/kuberay: every object is one that KubeRay, Kubernetes, Kueue and Volcano take, and what
it says about tokens, resources and runs fits together."""

from __future__ import annotations

import copy
import functools
import re
import shlex
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from manifests import FOLDERS, ROOT, SCHEMAS, built, cluster_of, of_ray, pod_templates
from ray.serve.schema import ServeDeploySchema
from validators import module

from xtdist.config import load
from xtdist.serve.deploy_file import read_endpoint
from xtdist.train.spec import RunSpec

RAY = [f for f in FOLDERS if f.split("-")[0] in ("cluster", "train", "serve")]
TRAIN = [f for f in FOLDERS if f.startswith("train")]
SERVE = [f for f in FOLDERS if f.startswith("serve")]
OF_KUBERNETES = ("v1", "apps/v1", "batch/v1", "networking.k8s.io/v1")


@functools.cache
def validator(name: str) -> Draft202012Validator:
    schema = yaml.safe_load((SCHEMAS / f"{name}.yaml").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture(scope="module")
def strict() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Kubernetes' own schemas, closed. Each is read once: the library reads its definitions, which
    are large, for every object."""
    module("kubernetes_validate", get="pip install kubernetes-validate")
    from kubernetes_validate import utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        yield lambda thing: utils.validate(copy.deepcopy(thing), "1.31", strict=True)


def containers(thing: dict[str, Any]) -> list[dict[str, Any]]:
    return [c for t in pod_templates(thing) for c in t["spec"]["containers"]]


def amount(text: str) -> Decimal:
    number, unit = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", text).groups()
    scale = {"": 1, "m": Decimal("0.001"), "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return Decimal(number) * scale[unit]


def asked(thing: dict[str, Any]) -> dict[str, Decimal]:
    """What all pods of a RayJob ask for."""
    spec = cluster_of(thing)
    groups = [(1, spec["headGroupSpec"]["template"]), (1, thing["spec"]["submitterPodTemplate"])]
    groups += [(g["replicas"], g["template"]) for g in spec["workerGroupSpecs"]]
    total: dict[str, Decimal] = {}
    for count, template in groups:
        for container in template["spec"]["containers"]:
            for name, value in container["resources"]["requests"].items():
                total[name] = total.get(name, Decimal(0)) + count * amount(value)
    return total


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_is_valid(folder, strict):
    for thing in built(folder):
        if thing["apiVersion"] == "ray.io/v1":
            validator("kuberay").validate(thing)
        elif thing["apiVersion"] in OF_KUBERNETES:
            strict(thing)
        else:
            validator("queues").validate(thing)
        for template in pod_templates(thing):
            pod = {
                "metadata": {"name": "p", **template.get("metadata", {})},
                "spec": template["spec"],
            }
            strict({"apiVersion": "v1", "kind": "Pod", **pod})


@pytest.mark.parametrize(
    "path",
    [
        "spec.shutDownAfterJobFinishes",
        "spec.rayClusterSpec.authOption",
        "spec.rayClusterSpec.workerGroupSpecs.0.replica",
        "spec.rayClusterSpec.headGroupSpec.rayStartParam",
    ],
)
def test_a_slip_of_the_pen_is_found(path):
    (job,) = of_ray("train-gpu")
    *parents, last = path.split(".")
    node = job
    for key in parents:
        node = node[int(key) if key.isdigit() else key]
    node[last] = True
    assert not validator("kuberay").is_valid(job)


@pytest.mark.parametrize("folder", RAY)
def test_token_authentication_is_on_and_the_token_is_not_here(folder):
    for thing in built(folder):
        assert thing["kind"] != "Secret"
        for container in containers(thing):
            for variable in container.get("env", []):
                assert not re.search("TOKEN|PASSWORD|SECRET", variable["name"]) or (
                    "secretKeyRef" in variable["valueFrom"]
                )
    (thing,) = of_ray(folder)
    assert cluster_of(thing)["authOptions"] == {"mode": "token", "secretName": "ray-token"}


@pytest.mark.parametrize("folder", RAY)
def test_what_ray_offers_is_what_kubernetes_gives(folder):
    (thing,) = of_ray(folder)
    spec = cluster_of(thing)
    assert spec["rayVersion"] == _pinned("ray")
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert len(spec["workerGroupSpecs"]) <= 7
    for group in spec["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        assert group["rayStartParams"]["num-gpus"] == limits.get("nvidia.com/gpu", "0")
        assert group["rayStartParams"]["num-cpus"] == limits["cpu"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert (
            spec.get("enableInTreeAutoscaling")
            or group["minReplicas"] == group["replicas"]
            or (thing["kind"] == "RayService")
        )


@pytest.mark.parametrize("folder", RAY)
def test_all_pods_have_one_image_run_as_nobody_and_see_the_shared_claim(folder):
    (thing,) = of_ray(folder)
    kind = "cpu" if folder.endswith("cpu") else "cuda"
    assert {c["image"] for c in containers(thing)} == {f"registry.example.com/xtdist:0.1.0-{kind}"}
    (claim,) = (o for o in built("base") if o["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for template in pod_templates(thing):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            if container["name"].startswith("ray-"):
                mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
                assert mounts["shared"] == "/shared"
                claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]
                          if v["name"] == "shared"]  # fmt: skip
                assert claims == [claim["metadata"]["name"]]


def spec_of_run(job: dict[str, Any]) -> RunSpec:
    """The config of an entrypoint, as `jobs/train.py` reads it."""
    program, script, config, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert (program, script) == ("python", "/opt/xtdist/jobs/train.py")
    path = ROOT / Path(config).relative_to("/opt/xtdist")
    return load(RunSpec, path, overrides).config


@pytest.mark.parametrize("folder", TRAIN)
def test_a_run_has_a_worker_for_each_gpu_and_one_for_each_pod_without(folder):
    (job,) = of_ray(folder)
    run = spec_of_run(job)
    groups = cluster_of(job)["workerGroupSpecs"]
    each = [max(1, int(g["rayStartParams"]["num-gpus"])) * g["replicas"] for g in groups]
    assert run.workers.count == sum(each)
    assert run.workers.placement == "spread"
    assert {Path(run.output).parts[1], Path(run.data.path).parts[1]} == {"shared"}
    assert job["spec"]["shutdownAfterJobFinishes"]
    assert job["spec"]["submissionMode"] == "K8sJobMode"
    assert "enableInTreeAutoscaling" not in cluster_of(job)


def test_the_prepared_dataset_is_the_one_that_is_trained_on():
    (prepare,) = built("data")
    (container,) = containers(prepare)
    output = dict(w.split("=", 1) for w in container["command"] if "=" in w)["output"]
    assert (ROOT / container["command"][2].removeprefix("/opt/xtdist/")).exists()
    for folder in TRAIN:
        (job,) = of_ray(folder)
        assert spec_of_run(job).data.path == output


def test_kueue_admits_the_whole_run_or_none_of_it():
    (job,) = of_ray("train-kueue")
    queues = {o["kind"]: o for o in built("train-kueue")}
    local, shared = queues["LocalQueue"], queues["ClusterQueue"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    assert local["metadata"]["namespace"] == job["metadata"]["namespace"]
    assert local["spec"]["clusterQueue"] == shared["metadata"]["name"]
    selector = shared["spec"]["namespaceSelector"]["matchLabels"]
    assert selector == {"kubernetes.io/metadata.name": job["metadata"]["namespace"]}
    assert job["spec"]["suspend"]  # Kueue clears it when there is room
    assert job["spec"]["shutdownAfterJobFinishes"]  # else it keeps its quota for ever
    assert "clusterSelector" not in job["spec"]  # an existing cluster is not queued
    (group,) = shared["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert flavor["name"] == queues["ResourceFlavor"]["metadata"]["name"]
    quota = {r["name"]: amount(r["nominalQuota"]) for r in flavor["resources"]}
    assert quota.keys() == set(group["coveredResources"])
    assert all(quota[name] >= needed for name, needed in asked(job).items())


def test_volcano_makes_a_gang_of_the_run():
    (job,) = of_ray("train-volcano")
    (queue,) = (o for o in built("train-volcano") if o["kind"] == "Queue")
    labels = job["metadata"]["labels"]
    assert labels["volcano.sh/queue-name"] == queue["metadata"]["name"]
    capability = {k: amount(v) for k, v in queue["spec"]["capability"].items()}
    assert all(capability[name] >= needed for name, needed in asked(job).items())
    assert "kueue.x-k8s.io/queue-name" not in labels


@pytest.mark.parametrize("folder", SERVE)
def test_the_service_is_one_that_ray_and_we_would_serve(folder, tmp_path):
    (service,) = of_ray(folder)
    text = service["spec"]["serveConfigV2"]
    ServeDeploySchema.model_validate(yaml.safe_load(text))
    (tmp_path / "serve.yaml").write_text(text)
    config = read_endpoint(tmp_path / "serve.yaml")
    assert config.has_keys
    (group,) = cluster_of(service)["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    mounts = {m["mountPath"] for m in worker["volumeMounts"]}
    assert {str(Path(config.api_keys_file).parent), "/shared"} <= mounts
    assert config.models[0].weights.startswith("/shared/")
    assert config.port in [p["containerPort"] for p in worker["ports"]]
    limits = worker["resources"]["limits"]
    assert config.gpus <= int(limits.get("nvidia.com/gpu", "0")) or config.gpus == 0
    assert config.cpus <= int(limits["cpu"])
    assert config.autoscaling.max_replicas <= group["maxReplicas"]
    assert service["spec"]["rayClusterDeletionDelaySeconds"] > config.drain_s


@pytest.mark.parametrize("folder", SERVE)
def test_the_service_outlives_its_head(folder):
    (service,) = of_ray(folder)
    kept = cluster_of(service)["gcsFaultToleranceOptions"]
    host, port = kept["redisAddress"].split(":")
    (redis,) = (o for o in built(folder) if o["kind"] == "Service")
    assert (host, int(port)) == (redis["metadata"]["name"], redis["spec"]["ports"][0]["port"])
    assert "value" not in kept["redisPassword"]
    (stateful,) = (o for o in built(folder) if o["kind"] == "StatefulSet")
    assert stateful["spec"]["template"]["metadata"]["labels"] == redis["spec"]["selector"]


def test_nothing_gets_in_but_what_is_named():
    policies = {o["metadata"]["name"]: o["spec"] for o in built("base")
                if o["kind"] == "NetworkPolicy"}  # fmt: skip
    assert policies["closed"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    ray = policies["ray"]
    assert ray["policyTypes"] == ["Ingress", "Egress"]
    anyone = [rule for rule in ray["ingress"] if not rule.get("from")]
    assert anyone == []
    for rule in ray["ingress"]:
        for source in rule["from"]:
            inside = source.get("podSelector", {}).get("matchExpressions")
            assert inside or "ports" in rule  # every port only among Ray's own pods
    (job,) = of_ray("train-gpu")
    labels = job["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    open_to = [s["podSelector"].get("matchLabels") for r in ray["ingress"] for s in r["from"]
               if "podSelector" in s]  # fmt: skip
    assert labels in open_to


def _pinned(name: str) -> str:
    return re.search(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)
