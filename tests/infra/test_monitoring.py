"""Prometheus' rules, and a dashboard on which nothing is shown that nobody exports."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from validators import module, program

from xtdist.decode.stats import EngineStats
from xtdist.serve.metrics import Metrics, Mirror
from xtdist.track import ray_metrics
from xtdist.track.ray_metrics import GAUGES

MONITORING = Path(__file__).resolve().parents[2] / "infra" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "xtdist.json").read_text())
RULE_FILES = sorted((MONITORING / "rules").glob("*.yml"))
Labels = frozenset[str]
# What Prometheus and Ray put on everything that a node tells.
NODE = frozenset({"ip", "SessionName", "Version", "IsHeadNode", "RayNodeType", "instance", "job"})
GPU = frozenset({"GpuIndex", "GpuDeviceName"})


def promtool(*words: str) -> None:
    tool = program("promtool", get="apt install prometheus")
    done = subprocess.run([tool, *words], cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def rules() -> list[dict[str, Any]]:
    groups = [g for file in RULE_FILES for g in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def targets() -> Iterator[tuple[str, str, str]]:
    """(panel, expression, legend)."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]


@cache
def of_training() -> dict[str, Labels]:
    """What track/ray_metrics.py declares, as Ray exports it, with the tags it is given."""
    from ray.util import metrics

    found: dict[str, Labels] = {}

    def keep(kind: str) -> Any:
        def make(name: str, _: str, *, tag_keys: tuple[str, ...], **__: Any) -> Any:
            ends = {"Histogram": ("_bucket", "_sum", "_count")}.get(kind, ("",))
            for end in ends:
                le = {"le"} if end == "_bucket" else set()
                found[f"ray_{name}{end}"] = frozenset({*tag_keys, *le}) | NODE
            return None

        return make

    with pytest.MonkeyPatch.context() as patch:
        for kind in ("Gauge", "Counter", "Histogram"):
            patch.setattr(metrics, kind, keep(kind))
        ray_metrics.RayMetrics("x")
    return found


def small_metrics() -> Metrics:
    """A replica's, of one model, after one request."""
    stats = EngineStats(**dict.fromkeys((f.name for f in dataclasses.fields(EngineStats)), 1))
    served = SimpleNamespace(name="m", thread=SimpleNamespace(stats=stats))
    gate = SimpleNamespace(open_requests=0)
    counts = {"m": 0}
    backend: Any = SimpleNamespace(
        models=[served], gate=gate, reloads=counts, failed_reloads=counts
    )
    metrics = Metrics(backend)
    metrics.meter("m")
    metrics.requests.labels("/v1/completions", 200)
    return metrics


@cache
def of_serving() -> dict[str, Labels]:
    """What a replica's registry holds, as its mirror gives it to Ray."""
    found: dict[str, Labels] = {}

    def make(name: str, _: str, tags: tuple[str, ...]) -> Any:
        found[f"ray_{name}"] = frozenset(tags) | NODE
        return SimpleNamespace(set=lambda value, tags: None)

    Mirror(small_metrics().registry, replica="r", make=make).publish()
    return found


@cache
def of_ray() -> dict[str, Labels]:
    """Those of the reporter on each node, with their tags, and Serve's counter of replicas."""
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES
    from ray.serve._private import replica

    found = {f"ray_{name}": NODE | (GPU if _of_gpu(name) else set()) for name in METRICS_GAUGES}
    name = "serve_deployment_replica_starts"
    assert f'"{name}"' in Path(str(replica.__file__)).read_text()
    found[f"ray_{name}_total"] = NODE | {"deployment", "replica", "application"}
    return found


def _of_gpu(name: str) -> bool:
    return name.startswith(("node_gpu", "node_gram"))


@cache
def exported() -> dict[str, Labels]:
    """All that can be asked for: the three above, and what the rules record of them."""
    found = of_training() | of_serving() | of_ray()
    for rule in rules():
        if "record" in rule:
            grouped = re.search(r"by \(([^)]*)\)", rule["expr"])
            names = {n.strip() for n in grouped[1].split(",")} - {"le"} if grouped else set()
            found[rule["record"]] = frozenset(names)
    return found


def selectors(expr: str) -> list[tuple[str, set[str]]]:
    """(metric, labels it is asked for by) of an expression, as promql-parser reads it."""
    import promql_parser as promql

    found: list[tuple[str, set[str]]] = []

    def walk(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            found.append((node.name, {m.name for m in node.matchers.matchers}))
        for part in ("vector_selector", "expr", "lhs", "rhs", "args", "param"):
            child = getattr(node, part, None)
            for each in child if isinstance(child, list) else [child]:
                if each is not None and not isinstance(each, str | float | int):
                    walk(each)

    walk(promql.parse(re.sub(r"\$\w+", "x", expr)))
    return found


def test_prometheus_takes_config_and_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", *[str(f.relative_to(MONITORING)) for f in RULE_FILES])


def test_each_alert_fires_and_does_not_fire() -> None:
    promtool("test", "rules", "tests/rules.test.yml")
    given = yaml.safe_load((MONITORING / "tests" / "rules.test.yml").read_text())["tests"]
    cases = [case for test in given for case in test["alert_rule_test"]]
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert {c["alertname"] for c in cases if c["exp_alerts"]} == alerts
    assert {c["alertname"] for c in cases if not c["exp_alerts"]} == alerts


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"].keys() == {"summary", "action"}


def test_every_metric_of_rules_and_dashboard_exists_with_its_labels() -> None:
    module("promql_parser", get="pip install promql-parser")
    asked = [(r.get("alert") or r["record"], r["expr"]) for r in rules()]
    asked += [(panel, expr) for panel, expr, _ in targets()]
    for where, expr in asked:
        found = selectors(expr)
        assert len(found) == len(re.findall(r"ray_\w+|xtdist:", expr)), where
        for name, labels in found:
            assert name in exported(), f"{where}: nobody exports {name}"
            assert labels <= exported()[name], f"{where}: {name} has no {labels - exported()[name]}"


def test_what_is_grouped_by_and_named_in_legends_are_labels() -> None:
    module("promql_parser", get="pip install promql-parser")
    for panel, expr, legend in targets():
        known = frozenset().union(*(exported()[name] for name, _ in selectors(expr)))
        asked = set(re.findall(r"\{\{(\w+)\}\}", legend))
        for names in re.findall(r"by \(([^)]*)\)", expr):
            grouped = {name.strip() for name in names.split(",")}
            assert grouped <= known, panel
            assert asked <= grouped, panel
        assert asked <= known, panel


def test_a_metric_that_is_misspelt_is_found() -> None:
    module("promql_parser", get="pip install promql-parser")
    ((name, labels),) = selectors('rate(ray_xtdist_train_los{runs="a"}[5m])')
    assert name not in exported()
    assert not labels <= exported()["ray_xtdist_train_loss"]


def test_the_dashboard_shows_every_gauge_of_training() -> None:
    shown = " ".join(expr for _, expr, _ in targets())
    assert [g.name for g in GAUGES if f"ray_{g.name}" not in shown] == []


def test_panels_can_be_told_apart_and_explain_themselves() -> None:
    panels = DASHBOARD["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    shown = [p for p in panels if p["type"] != "row"]
    assert len({p["title"] for p in shown}) == len(shown)
    for panel in shown:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        sources = [panel["datasource"], *(t["datasource"] for t in panel["targets"])]
        assert all(s["uid"] == "${datasource}" for s in sources)
    assert "datasource" in {v["type"] for v in DASHBOARD["templating"]["list"]}


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
