"""The Helm chart, rendered by Helm's own library for each file of ci/: every object is one that
Kubernetes and KubeRay take, closed and without a password; wrong values are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from validators import module

ROOT = Path(__file__).parents[2]
CHART = ROOT / "infra/helm/xtdist"
FILES = sorted((CHART / "ci").glob("*.yaml"))
OF_KUBERNETES = ("v1", "apps/v1", "networking.k8s.io/v1")
each = pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)


@pytest.fixture(scope="module")
def chart() -> Any:
    module("helm_python", get="pip install helm-python-sdk")
    import helm_python

    return helm_python.Chart.load(CHART)


def render(chart: Any, values: dict[str, Any] | None) -> list[dict[str, Any]]:
    texts = chart.render(values, name="xtdist", namespace="ml")
    files = [text for path, text in texts.items() if not path.endswith(".txt")]
    return [thing for text in files for thing in yaml.safe_load_all(text) if thing]


def of(things: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (found,) = (
        t for t in things if t["kind"] == kind and t["metadata"]["name"] in (name, f"xtdist{name}")
    )
    return found


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec in an object, at any depth."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


def laptop() -> dict[str, Any]:
    return yaml.safe_load((CHART / "ci/laptop.yaml").read_text())


def test_helm_lint_finds_no_mistake() -> None:
    module("helm_python", get="pip install helm-python-sdk")
    import helm_python

    for file in FILES:
        found = helm_python.lint(CHART, yaml.safe_load(file.read_text()), strict=True)
        assert found["errors"] == []
        assert [m["error"] for m in found["messages"]] == ["icon is recommended"]


@each
def test_every_object_is_one_that_the_cluster_takes(chart: Any, file: Path) -> None:
    module("kubernetes_validate", get="pip install kubernetes-validate")
    import kubernetes_validate
    from jsonschema import Draft202012Validator

    schema = yaml.safe_load((ROOT / "tests/cluster/schemas/kuberay.yaml").read_text())
    things = render(chart, yaml.safe_load(file.read_text()))
    for thing in things:
        if thing["apiVersion"] in OF_KUBERNETES:
            kubernetes_validate.validate(thing, "1.33", strict=True)
        elif thing["kind"] == "RayCluster":
            Draft202012Validator(schema).validate(thing)
            spec = thing["spec"]
            for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
                pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
                pod["metadata"] = {"name": "one", **pod["metadata"]}
                kubernetes_validate.validate(pod, "1.33", strict=True)
        else:
            assert thing["apiVersion"] == "monitoring.coreos.com/v1"
            assert thing["kind"] in ("PodMonitor", "PrometheusRule")
            assert thing["spec"]
    names = [(t["kind"], t["metadata"]["name"]) for t in things]
    assert len(set(names)) == len(names)


@each
def test_pods_keep_to_the_restricted_standard(chart: Any, file: Path) -> None:
    for thing in render(chart, yaml.safe_load(file.read_text())):
        for pod in pods(thing):
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            head = pod["containers"][0]["name"] == "ray-head"
            assert pod["automountServiceAccountToken"] is head, (
                "only its autoscaler asks Kubernetes"
            )
            assert not any("hostPath" in volume for volume in pod.get("volumes", []))
            for container in (*pod["containers"], *pod.get("initContainers", [])):
                security = container["securityContext"]
                assert security["allowPrivilegeEscalation"] is False
                assert security["capabilities"] == {"drop": ["ALL"]}
                assert security.get("readOnlyRootFilesystem") or container["name"].startswith("ray")
                assert container["resources"]["limits"] == container["resources"]["requests"]
                assert re.search(r":[^:]*\d[^:]*$", container["image"])
                assert not container["image"].endswith(":latest")
        if thing["kind"] == "ServiceAccount":
            assert thing["automountServiceAccountToken"] is False


@each
def test_no_secret_is_rendered_only_named(chart: Any, file: Path) -> None:
    things = render(chart, yaml.safe_load(file.read_text()))
    assert "Secret" not in {thing["kind"] for thing in things}
    for thing in things:
        for pod in pods(thing):
            for variable in (v for c in pod["containers"] for v in c.get("env", [])):
                if re.search("PASSWORD|SECRET|TOKEN|KEY|STORE_URI", variable["name"]):
                    value = variable.get("value", "")
                    assert "valueFrom" in variable or value.startswith("/run/secrets/")


@each
def test_services_find_pods_and_every_volume_that_is_mounted_exists(chart: Any, file: Path) -> None:
    things = render(chart, yaml.safe_load(file.read_text()))
    templates = [
        t["spec"]["template"] for t in things if t["kind"] in ("Deployment", "StatefulSet")
    ]
    for service in (t for t in things if t["kind"] == "Service"):
        wanted = service["spec"]["selector"].items()
        (found,) = (t for t in templates if wanted <= t["metadata"]["labels"].items())
        ports = {p["name"] for c in found["spec"]["containers"] for p in c["ports"]}
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= ports
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    for thing in things:
        claims = thing.get("spec", {}).get("volumeClaimTemplates", [])
        for pod in pods(thing):
            have = {v["name"] for v in pod.get("volumes", [])} | {
                c["metadata"]["name"] for c in claims
            }
            used = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])}
            assert used <= have


@each
def test_pods_are_reached_by_those_only_who_need_them(chart: Any, file: Path) -> None:
    things = render(chart, yaml.safe_load(file.read_text()))
    policies = [t["spec"] for t in things if t["kind"] == "NetworkPolicy"]
    for workload in (t for t in things if t["kind"] in ("Deployment", "StatefulSet")):
        labels = workload["spec"]["template"]["metadata"]["labels"].items()
        (policy,) = (p for p in policies if p["podSelector"]["matchLabels"].items() <= labels)
        assert all(rule["from"] and rule["ports"] for rule in policy["ingress"])
    if any(t["kind"] == "RayCluster" for t in things):
        assert {"ray.io/cluster": "xtdist"} in [p["podSelector"]["matchLabels"] for p in policies]


def test_on_gpus_ray_counts_what_kubernetes_gives(chart: Any) -> None:
    things = render(chart, yaml.safe_load((CHART / "ci/eks.yaml").read_text()))
    spec = of(things, "RayCluster")["spec"]
    (group,) = spec["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert limits == {"cpu": "90", "memory": "700Gi", "nvidia.com/gpu": "8"}
    assert group["rayStartParams"]["num-gpus"] == "8"
    assert group["rayStartParams"]["num-cpus"] == "90"
    assert container["image"] == "registry.example.com/xtdist:0.1.0-cuda"
    assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    keys = {t["key"] for t in group["template"]["spec"]["tolerations"]}
    assert keys == {"nvidia.com/gpu", "xtdist/spot"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_mlflow_is_known_by_the_names_that_its_clients_use(chart: Any) -> None:
    things = render(chart, yaml.safe_load((CHART / "ci/eks.yaml").read_text()))
    (mlflow,) = of(things, "Deployment", "-mlflow")["spec"]["template"]["spec"]["containers"]
    environment = {v["name"]: v.get("value") for v in mlflow["env"]}
    hosts = environment["MLFLOW_HOSTS"].split(",")
    head = of(things, "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    uris = [v["value"] for v in head["containers"][0]["env"] if v["name"] == "MLFLOW_TRACKING_URI"]
    assert uris == ["http://xtdist-mlflow:5000"]
    assert {"xtdist-mlflow:5000", "localhost:5000", "mlflow.example.com"} <= set(hosts)
    assert "MLFLOW_BACKEND_STORE_URI" in environment
    assert "AWS_ACCESS_KEY_ID" not in environment, "the service account's role is its identity"


def test_the_database_is_upgraded_before_the_server_starts_when_that_is_asked_for(
    chart: Any,
) -> None:
    for upgrade in (False, True):
        values = merged(laptop(), {"mlflow": {"upgradeDatabase": upgrade}})
        deployment = of(render(chart, values), "Deployment", "-mlflow")
        pod = deployment["spec"]["template"]["spec"]
        assert [c["args"] for c in pod.get("initContainers", [])] == [["upgrade"]] * upgrade
        if upgrade:
            assert pod["initContainers"][0]["env"] == pod["containers"][0]["env"]


def test_rules_and_dashboard_are_those_of_infra_monitoring(chart: Any) -> None:
    things = render(chart, yaml.safe_load((CHART / "ci/eks.yaml").read_text()))
    rules = sorted((ROOT / "infra/monitoring/rules").glob("*.yml"))
    groups = [g for file in rules for g in yaml.safe_load(file.read_text())["groups"]]
    assert groups
    assert of(things, "PrometheusRule")["spec"]["groups"] == groups
    boards = {f.name: f.read_text() for f in (ROOT / "infra/monitoring/grafana").glob("*.json")}
    assert boards
    assert of(things, "ConfigMap", "-dashboard")["data"] == boards
    assert of(things, "PodMonitor", "-ray")["metadata"]["labels"]["release"] == "prometheus"


WRONG = {
    "an unknown key": ({"ray": {"workers": {"maximum": 3}}}, "maximum"),
    "a moving tag": ({"image": {"tag": "latest"}}, "image/tag"),
    "a password as a value": ({"postgresql": {"password": "secret"}}, "password"),
    "memory without a unit": ({"ray": {"head": {"resources": {"memory": "8"}}}}, "memory"),
    "no worker at all": ({"ray": {"workers": {"max": 0}}}, "workers/max"),
    "an endpoint with a password": (
        {"objectStore": {"endpoint": "https://me:secret@host", "inCluster": {"enabled": False}}},
        "endpoint",
    ),
    "every host": ({"mlflow": {"hosts": ["*"]}}, "hosts"),
    "no bucket": ({"objectStore": {"bucket": ""}}, "objectStore.bucket is empty"),
    "no database": ({"postgresql": {"enabled": False}}, "mlflow.databaseSecret is empty"),
    "two databases": ({"mlflow": {"databaseSecret": "rds"}}, "has one database"),
    "two object stores": ({"objectStore": {"endpoint": "https://host"}}, "choose one object"),
    "a store without keys": ({"objectStore": {"credentialsSecret": ""}}, "takes its keys from"),
    "less than the least": ({"ray": {"workers": {"min": 3}}}, "less than ray.workers.min"),
    "parts of CPUs": (
        {"ray": {"workers": {"resources": {"cpu": "500m"}}}},
        "give whole CPUs",
    ),
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {k: merged(base[k], v) for k, v in over.items() if isinstance(base.get(k), dict)}
    return {**base, **over, **both}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_refused_by_name(chart: Any, case: str) -> None:
    import helm_python

    values, said = WRONG[case]
    with pytest.raises(helm_python.HelmError) as error:
        render(chart, merged(laptop(), values))
    assert said in str(error.value)


def test_a_values_file_alone_says_what_is_missing(chart: Any) -> None:
    import helm_python

    with pytest.raises(helm_python.HelmError, match=r"objectStore\.bucket is empty"):
        render(chart, None)


def test_the_schema_knows_every_value_and_no_other(chart: Any) -> None:
    def leaves(schema: dict[str, Any], path: str = "") -> set[str]:
        inner = schema.get("properties")
        if not inner:
            return {path}
        return {
            leaf for k, v in inner.items() if k != "global" for leaf in leaves(v, f"{path}/{k}")
        }

    def values(tree: Any, path: str = "") -> set[str]:
        if not isinstance(tree, dict) or not tree:
            return {path}
        return {leaf for k, v in tree.items() for leaf in values(v, f"{path}/{k}")}

    schema = json.loads((CHART / "values.schema.json").read_text())
    assert leaves(schema) == values(yaml.safe_load((CHART / "values.yaml").read_text()))


def test_what_helm_prints_after_installing_names_real_services(chart: Any) -> None:
    texts = chart.render(laptop(), name="xtdist", namespace="ml")
    (notes,) = (text for path, text in texts.items() if path.endswith("NOTES.txt"))
    assert "service/xtdist-head-svc 8265" in notes  # KubeRay's name for it
    assert "track.uri=http://xtdist-mlflow:5000" in notes
