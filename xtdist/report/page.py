"""A run's report as one HTML file."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any

from xtdist.config import ResourceError
from xtdist.report import became, made
from xtdist.report.folder import Missing, RunFolder, moment
from xtdist.track.curves import MAX_POINTS, chart_data, summary
from xtdist.track.environment import without_secrets
from xtdist.track.events import number, read_rows
from xtdist.track.page import write_page
from xtdist.track.text import duration

_log = logging.getLogger(__name__)


def write_report(
    run_folder: str | Path, output: str | Path | None = None, *, remote: bool = True
) -> Path:
    """Write the page of the run in ``run_folder``, whole or not at all; what is not known is said
    to be missing. Works while the run goes on, and of one that failed.

    Args:
        output: ``<run>/report.html`` by default.
        remote: ask object stores for the run's checkpoints and datasets.

    Raises:
        ConfigError: the folder is no run.
        ResourceError: the page can't be written.
    """
    folder = RunFolder(run_folder)
    path = Path(output) if output is not None else folder.path / "report.html"
    facts = gather(folder, remote=remote)
    try:
        return write_page(
            path,
            "report.html",
            data=chart_data([folder.run]),
            facts=facts,
            package="xtdist.report",
        )
    except OSError as e:
        raise ResourceError(f"{path}: can't be written ({e.strerror}); give --output") from None


def try_report(run_folder: str | Path) -> Path | None:
    """The page at a run's end, without asking object stores; None, with a warning, if it can't be
    made: a run does not fail for its report."""
    try:
        return write_report(run_folder, remote=False)
    except Exception as e:
        _log.warning("%s: no report was written: %s", run_folder, e)
        return None


def gather(folder: RunFolder, *, remote: bool) -> dict[str, Any]:
    """All that the page says, by section; a :class:`Missing` where there is nothing."""
    checkpoints = became.checkpoints(folder, remote=remote)
    return {
        "title": folder.name,
        "status": folder.status,
        "span": _span(folder),
        "losses": became.losses(folder),
        "evaluation": became.evaluation(folder),
        "settings": made.settings(folder),
        "data_facts": made.data(folder, remote=remote),
        "model": made.model(folder),
        "samples": became.samples(folder),
        "hardware": _hardware(folder, checkpoints),
        "goodput": became.goodput(folder),
        "attempts": became.attempts(folder),
        "checkpoints": checkpoints,
        "timeline": became.timeline(folder),
        "reproduce": _reproduce(folder),
        "files": became.files(folder),
        "folder": str(folder.path.resolve()),
        "has_curves": bool(folder.run.series),
        "summary": summary([folder.run]),
        "max_points": MAX_POINTS,
        "Missing": Missing,
    }


def _span(folder: RunFolder) -> dict[str, str]:
    began, until = folder.run.began, folder.last_sign
    took = duration(until - began) if began and until >= began else "-"
    return {"began": moment(began), "until": moment(until), "took": took}


def _hardware(folder: RunFolder, checkpoints: Any) -> list[tuple[str, str]]:
    """What is known of machines and versions: label, value."""
    force = folder.read_json("in_force.json", dict)
    beats = {}
    for path in sorted(folder.path.glob("beats/rank-*.json")):
        beat = folder.read_json(f"beats/{path.name}", dict)
        if isinstance(beat, dict):
            beats[path.stem] = str(beat.get("host"))
    found = (
        []
        if isinstance(checkpoints, Missing)
        else [r.get("environment") for r in checkpoints["rows"]]
    )
    saved = next((e for e in found if isinstance(e, dict)), None)
    started = folder.environments[-1] if folder.environments else {}
    hosts = sorted(set(beats.values()))
    device = str(force.get("device")) if isinstance(force, dict) else "not recorded"
    rows = [
        ("workers", str(force.get("world")) if isinstance(force, dict) else str(force)),
        ("device of each", device),
        ("nodes", f"{len(hosts)}: {', '.join(hosts)}" if hosts else "not recorded"),
    ]
    if device not in ("cpu", "not recorded"):
        rows.append(("GPU model", "not recorded"))
    if started:
        rows.append(("started on", f"{started.get('host')}, {started.get('cpus')} CPUs"))
    versions = saved or started
    for key in ("python", "platform"):
        rows.append((key, str(versions.get(key, "not recorded"))))
    listed = started.get("packages")
    packages: dict[str, Any] = listed if isinstance(listed, dict) else {}
    for name in ("xtdist", "torch", "deepspeed", "ray"):
        version = (saved or {}).get(name) or packages.get(name) or "not recorded"
        rows.append((name, str(version)))
    return rows


def _reproduce(folder: RunFolder) -> dict[str, Any]:
    """Commands, commit and packages; the last start's, and how many there were."""
    config = shlex.quote(str(folder.path.resolve() / "config.yaml"))
    tracked = [row for row in folder.environments if isinstance(row.get("packages"), dict)]
    last = tracked[-1] if tracked else {}
    whole = not isinstance(folder.tree, Missing)
    return {
        "command": f"xtdist train {config} name={shlex.quote(folder.name + '-again')}"
        if whole
        else None,
        "goes_on": f"xtdist train {config}" if whole else None,
        "given": [
            {
                "when": moment(number(row.get("time"))),
                "command": without_secrets(str(row.get("command"))),
                "where": f"{row.get('host')}:{row.get('folder')}",
                "git": row.get("git"),
                "changed": row.get("changed"),
            }
            for row in tracked
        ],
        "lock": "\n".join(
            f"{name}=={version}" for name, version in last.get("packages", {}).items()
        ),
        "mlflow": folder.read_json("mlflow_run.json", lambda tree: str(tree["run_id"])),
        "rows": len(read_rows(folder.path / "metrics.jsonl")),
    }
