"""What a sweep leaves: a table for people and for programs, a plot, the best config."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from xtdist.config import to_mapping
from xtdist.files import write_atomic
from xtdist.launch.sweep.draw import run_at, shown
from xtdist.launch.sweep.plot import results_png
from xtdist.launch.sweep.records import Result
from xtdist.launch.sweep.spec import SweepSpec

MOST_ROWS = 40


def write_results(
    sweep: SweepSpec, results: Sequence[Result], best: Result | None, folder: Path
) -> list[Path]:
    """``results.json``, ``results.csv``, ``results.png``, ``results.html`` and, if a trial came to
    anything, ``best.yaml``, which ``xtdist train`` takes. Their paths."""
    whole = {
        "name": sweep.name,
        "metric": sweep.metric,
        "lower_is_better": sweep.lower_is_better,
        "best": best.name if best else None,
        "trials": [{"name": row.name, **asdict(row)} for row in results],
    }
    texts = {
        "results.json": json.dumps(whole, indent=1) + "\n",
        "results.csv": _csv(sweep, results),
    }
    measured = [row for row in results if row.best is not None]
    if measured:
        texts["results.html"] = _page(sweep, results, results_png(sweep, measured, folder))
    if best is not None:
        texts["best.yaml"] = _best(sweep, best)
    for name, text in texts.items():
        write_atomic(folder / name, text)
    pictures = [folder / "results.png"] if measured else []
    return [*(folder / name for name in texts), *pictures]


def text_table(sweep: SweepSpec, results: Sequence[Result]) -> str:
    """The rows as in a terminal, the best first."""
    table = Table(title=f"{sweep.name}: {sweep.metric}", title_style="")
    for column in ("trial", *sweep.space, sweep.metric.rsplit("/", 1)[-1], "at step", "status"):
        table.add_column(column, overflow="fold")
    for row in results[:MOST_ROWS]:
        table.add_row(*_cells(sweep, row))
    out = io.StringIO()
    Console(file=out, width=max(80, 24 + 16 * len(sweep.space) + 30)).print(table)
    more = len(results) - MOST_ROWS
    return out.getvalue() + (f"and {more} more in results.csv\n" if more > 0 else "")


def _cells(sweep: SweepSpec, row: Result) -> list[str]:
    values = [shown({path: row.values[path]}).partition("=")[2] for path in sweep.space]
    best = "-" if row.best is None else f"{row.best:.4f}"
    end = f"{row.status}: {row.error[:60]}" if row.error else row.status
    return [row.name, *values, best, str(row.best_step or "-"), end]


def _csv(sweep: SweepSpec, results: Sequence[Result]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "trial",
            "status",
            sweep.metric,
            "at_step",
            "last_validation",
            *sweep.space,
            "folder",
            "error",
        ]
    )
    for row in results:
        best = "" if row.best is None else row.best
        values = [_plain(row.values[path]) for path in sweep.space]
        writer.writerow(
            [row.name, row.status, best, row.best_step, row.step, *values, row.folder, row.error]
        )
    return out.getvalue()


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else json.dumps(value)


def _best(sweep: SweepSpec, best: Result) -> str:
    spec = run_at(sweep, best.values)
    spec = replace(spec, name=f"{sweep.name}-best")
    head = (
        f"# The best of the sweep {sweep.name}: {best.name}, {sweep.metric} {best.best:.4f} at "
        f"step {best.best_step},\n# with {shown(best.values)}\n"
    )
    return head + yaml.safe_dump(to_mapping(spec), sort_keys=False)


def _page(sweep: SweepSpec, results: Sequence[Result], picture: Path) -> str:
    """One file that loads nothing from anywhere."""
    columns = ("trial", *sweep.space, sweep.metric, "at step", "status")
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in _cells(sweep, row)) + "</tr>\n"
        for row in results
    )
    image = base64.b64encode(picture.read_bytes()).decode()
    title = html.escape(f"{sweep.name}: {sweep.metric}")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #1d2530 }}
body {{ margin: 2rem auto; max-width: 70rem }}
img {{ max-width: 100% }} table {{ border-collapse: collapse }}
td, th {{ padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #dde2e8 }}
</style>
<h1>{title}</h1>
<img src="data:image/png;base64,{image}" alt="{title}, against each value that was varied">
<table><tr>{head}</tr>
{rows}</table>
</html>
"""
