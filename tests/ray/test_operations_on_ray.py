"""What looks after a cluster, on a running one: the doctor on two nodes, and the metrics that the
dashboard shows, as Prometheus would read them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_tools import FOREIGN, RAY, ROOT, Cluster

pytestmark = [pytest.mark.ray, pytest.mark.long]

DASHBOARD = ROOT / "infra" / "monitoring" / "grafana" / "xtdist.json"
# What a run of two workers on a CPU has nothing of.
NOT_HERE = {"ray_xtdist_train_mfu", "ray_xtdist_train_cuda_reserved_gigabytes"}


@pytest.fixture
def second_node(cluster: Cluster) -> Iterator[None]:
    env = {k: v for k, v in os.environ.items() if k not in FOREIGN} | cluster.env
    command = [str(RAY), "start", "--address", cluster.env["RAY_ADDRESS"], "--num-cpus", "1"]
    with open(cluster.state / "second.log", "w") as log:
        node = subprocess.Popen(
            [*command, "--block", "--disable-usage-stats"],
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        os.killpg(node.pid, signal.SIGTERM)
        try:
            node.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(node.pid, signal.SIGKILL)


def doctor(cluster: Cluster, *words: str) -> tuple[int, dict[str, Any]]:
    done = cluster.xtdist("doctor", *words, "--json")
    return done.code, json.loads(done.out[done.out.index("{") :])


def test_the_doctor_looks_at_each_of_two_nodes(
    cluster: Cluster, second_node: None, make_config: Callable[..., Path]
) -> None:
    config = str(make_config("examined"))
    ends = time.monotonic() + 120
    while True:
        code, tree = doctor(cluster, config)
        found = tree["findings"]
        nodes = {f["node"] for f in found} - {None}
        if len(nodes) == 2 or time.monotonic() > ends:
            break
    assert len(nodes) == 2, tree
    for check in ("versions", "shared memory", "output", "data.path"):
        assert {f["node"] for f in found if f["check"] == check} == nodes
    levels = {f["check"]: f["level"] for f in found if f["node"] is None}
    for check in (
        "same versions",
        "clock",
        "ports",
        "output on all nodes",
        "all-reduce between nodes (gloo)",
        "ray auth",
    ):
        assert levels[check] == "green", found
    assert not list((Path(config).parent).rglob(".xtdist-doctor-*"))
    reds = [f for f in found if f["level"] == "red"]
    assert code == bool(reds)


def test_the_doctor_finds_a_cluster_that_is_open(tmp_path: Path) -> None:
    """Without tokens, as `ray start` alone would run."""
    env = {k: v for k, v in os.environ.items() if k not in FOREIGN} | {"RAY_AUTH_MODE": "disabled"}
    script = (
        "import ray, sys\n"
        "ray.init(num_cpus=1, include_dashboard=False, logging_level='ERROR')\n"
        "from xtdist.doctor.doors import read_doors, judge_doors\n"
        "doors = read_doors(ray.get_runtime_context().gcs_address, None)\n"
        "print(doors.gcs, judge_doors(doors)[0].level)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.split()[-2:] == ["True", "red"], done.stderr


def scrape(cluster: Cluster) -> dict[str, set[str]]:
    """By metric, the labels that its samples have, from all that Ray tells Prometheus of."""
    folder = Path((cluster.state / "tmp").read_text().strip())
    groups = json.loads((folder / "prom_metrics_service_discovery.json").read_text())
    found: dict[str, set[str]] = {}
    for address in (a for group in groups for a in group["targets"]):
        try:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as reply:
                text = reply.read().decode()
        except OSError:  # of a node that has left a moment ago
            continue
        for name, labels in re.findall(r"^(\w+)\{([^}]*)\}", text, flags=re.MULTILINE):
            found.setdefault(name, set()).update(re.findall(r"(\w+)=\"", labels))
    return found


def test_a_run_exports_all_that_the_dashboard_shows_of_training(
    cluster: Cluster, make_config: Callable[..., Path]
) -> None:
    asked = {
        name
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel.get("targets", ())
        for name in re.findall(r"ray_xtdist_train_\w+", target["expr"])
    }
    # A note only comes where something went wrong.
    wanted = asked - NOT_HERE - {"ray_xtdist_train_notes_total"}
    changes = {"loop.steps": 100_000, "track.stragglers.every": 2, "track.mlflow": False}
    child = cluster.start("train", str(make_config("measured", changes)))
    found: dict[str, set[str]] = {}
    ends = time.monotonic() + 300
    try:
        while not wanted <= found.keys() and time.monotonic() < ends and child.poll() is None:
            time.sleep(2)
            found = scrape(cluster)
    finally:
        os.killpg(child.pid, signal.SIGINT)
        child.communicate(timeout=200)
    assert wanted <= found.keys(), wanted - found.keys()
    assert all("run" in found[name] for name in wanted)
    assert {"rank", "run"} <= found["ray_xtdist_train_rank_seconds"]
    assert "phase" in found["ray_xtdist_train_phase_seconds"]


def test_rays_mirror_of_serving_keeps_the_names_that_the_dashboard_asks_for(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Gauges of Ray's under a counter's and a histogram's names."""
    script = tmp_path / "mirror.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(ROOT / 'tests' / 'infra')!r})\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import ray\n"
        "ray.init(logging_level='ERROR')\n"
        "from test_monitoring import small_metrics\n"
        "from xtdist.serve.metrics import Mirror\n"
        "mirror = Mirror(small_metrics().registry, replica='r')\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    mirror.publish()\n"
        "    time.sleep(1)\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in FOREIGN} | cluster.env
    child = subprocess.Popen([sys.executable, str(script)], env=env, text=True)
    wanted = {
        name
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel.get("targets", ())
        for name in re.findall(r"ray_xtdist_(?!train_)\w+", target["expr"])
    }
    found: dict[str, set[str]] = {}
    ends = time.monotonic() + 120
    try:
        while not wanted <= found.keys() and time.monotonic() < ends and child.poll() is None:
            time.sleep(2)
            found = scrape(cluster)
    finally:
        child.kill()
        child.wait()
    assert wanted <= found.keys(), wanted - found.keys()
    assert {"model", "le"} <= found["ray_xtdist_first_token_seconds_bucket"]
    assert {"route", "status"} <= found["ray_xtdist_requests_total"]
