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
from xtdist.config.load import read_yaml
from xtdist.files import write_atomic

YAML = (".yaml", ".yml")
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
        from lm_eval.tasks import TaskManager

        from xtdist.evaluate.harness import HarnessLM
    except ImportError:
        raise ConfigError(
            "--tasks: needs the extra evaluate: pip install 'xtdist[evaluate]'"
        ) from None
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit: got {limit}; give 1 or more, or leave it out for all")
    local = [task for name in tasks if _is_path(name) for task in local_tasks(Path(name))]
    names = [name for name in tasks if not _is_path(name)]
    manager = TaskManager(include_defaults=bool(names))
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise ConfigError(
            f"--tasks: {unknown[0]!r} is no task of the harness, and no YAML file or folder of them"
        )
    loaded = load_weights(weights)
    found = lm_eval.simple_evaluate(
        model=HarnessLM(loaded),
        tasks=[*names, *local],
        task_manager=manager,
        limit=limit,
        log_samples=False,
        bootstrap_iters=_BOOTSTRAPS,
    )
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


def local_tasks(path: Path) -> list[dict[str, Any]]:
    """The task of a YAML file, or those of a folder. Paths of data files are relative to the YAML;
    Python functions (``!function``) are code and not read.

    Raises:
        ConfigError: no such file, no task in it, or no data where it says.
    """
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in YAML)
        if not files:
            raise ConfigError(f"{path}: no YAML file of a task there")
    return [_local_task(file) for file in files]


def _local_task(file: Path) -> dict[str, Any]:
    tree, _ = read_yaml(file)
    if not isinstance(tree.get("task"), str) or "dataset_path" not in tree:
        raise ConfigError(f"{file}: not a task: it must have task (a name) and dataset_path")
    keywords = tree.get("dataset_kwargs")
    if isinstance(keywords, dict) and "data_files" in keywords:
        keywords["data_files"] = _absolute(keywords["data_files"], file.parent)
    return tree


def _absolute(files: Any, folder: Path) -> Any:
    if isinstance(files, dict):
        return {split: _absolute(value, folder) for split, value in files.items()}
    if isinstance(files, list):
        return [_absolute(value, folder) for value in files]
    path = (folder / str(files)).resolve()
    if not path.is_file():
        raise ConfigError(f"dataset_kwargs.data_files: there is no {path}")
    return str(path)


def _is_path(name: str) -> bool:
    return name.endswith(YAML) or "/" in name or Path(name).is_dir()


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
