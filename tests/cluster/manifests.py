"""The Kubernetes objects of cluster/kuberay, as `kubectl kustomize` builds them."""

from __future__ import annotations

import copy
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from validators import program

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
FOLDERS = sorted(p.parent.name for p in KUBERAY.glob("*/kustomization.yaml"))
SCHEMAS = Path(__file__).parent / "schemas"
CLUSTER_OF = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}


@functools.cache
def _built(folder: str) -> list[dict[str, Any]]:
    kubectl = program("kubectl", get="apt install kubernetes-client")
    command = [kubectl, "kustomize", str(KUBERAY / folder)]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return list(yaml.safe_load_all(out.stdout))


def built(folder: str) -> list[dict[str, Any]]:
    """The objects of a folder, for the caller to change."""
    return copy.deepcopy(_built(folder))


def of_ray(folder: str) -> list[dict[str, Any]]:
    return [o for o in built(folder) if o["kind"] in CLUSTER_OF]


def cluster_of(thing: dict[str, Any]) -> dict[str, Any]:
    """The RayClusterSpec in a RayCluster, RayJob or RayService."""
    spec = thing["spec"]
    for key in CLUSTER_OF[thing["kind"]]:
        spec = spec[key]
    return spec


def pod_templates(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod template in an object, at any depth."""
    if isinstance(node, list):
        for item in node:
            yield from pod_templates(item)
    elif isinstance(node, dict):
        if "containers" in node.get("spec", {}):
            yield node
        for item in node.values():
            yield from pod_templates(item)
