"""Tasks of the lm-evaluation-harness: those that it has, and YAML files beside their data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from xtdist.checkpoint import load_weights
from xtdist.config import ConfigError
from xtdist.evaluate.report import make_room
from xtdist.files import write_atomic

_BOOTSTRAPS = 1000


def run_tasks(
    weights: str | Path,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    saved: Path | None = None,
) -> dict[str, Any]:
    """Evaluate ``weights`` on ``tasks``: names that the harness knows, YAML files, or folders of
    such. ``limit``: so many documents of each. ``saved``: a file for the numbers.

    Raises:
        ConfigError: the extra is missing, an unknown task, or a model that can't do it.
        UserError: nothing to load.
    """
    try:
        import lm_eval
        from jinja2 import TemplateError

        from xtdist.evaluate.harness import HarnessLM
        from xtdist.evaluate.local_tasks import choose, sandbox_templates
    except ImportError:
        raise ConfigError(
            "--tasks: needs the extra evaluate: pip install 'xtdist[evaluate]'"
        ) from None
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit: got {limit}; give 1 or more, or leave it out for all")
    make_room(saved)
    sandbox_templates()
    manager, chosen = choose(tasks)
    loaded = load_weights(weights)
    model = HarnessLM(loaded)
    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=chosen,
            task_manager=manager,
            limit=limit,
            log_samples=False,
            bootstrap_iters=_BOOTSTRAPS,
        )
    except TemplateError as e:
        raise ConfigError(f"--tasks: a template can't be filled in: {e}") from e
    report = {
        "weights": loaded.digest,
        "step": int(loaded.meta.get("step", 0)),
        "limit": limit,
        "results": {name: _numbers(row) for name, row in found["results"].items()},
        "documents": {name: row["effective"] for name, row in found["n-samples"].items()},
    }
    if saved is not None:
        write_atomic(saved, json.dumps(report, indent=1))
    return report


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """``metric`` or ``metric (filter)`` → value, and ``… stderr``."""
    found = {}
    for key, value in row.items():
        metric, _, name = key.partition(",")
        if isinstance(value, int | float) and name:
            shown = metric.replace("_stderr", " stderr")
            found[shown if name == "none" else f"{shown} ({name})"] = float(value)
    return found


def table(report: dict[str, Any]) -> str:
    """For people."""
    shown = Table(title=f"tasks: model at step {report['step']}")
    for head in ("task", "documents", "metric", "value", "±"):
        shown.add_column(head, justify="right" if head in ("documents", "value", "±") else "left")
    for name, row in report["results"].items():
        for metric, value in row.items():
            if " stderr" not in metric:
                base, _, rest = metric.partition(" ")
                error = row.get(f"{base} stderr{' ' + rest if rest else ''}")
                count = str(report["documents"].get(name, ""))
                pm = "" if error is None else f"{error:.4f}"
                shown.add_row(name, count, metric, f"{value:.4f}", pm)
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    return capture.get().rstrip()
