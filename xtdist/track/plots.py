"""Plots of runs from their ``metrics.jsonl``: ``loss.png`` and one self-contained HTML page.

Both overlay any number of runs. The page loads nothing from anywhere.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtdist.config import DataError
from xtdist.track.records import FILE, Series, read_series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#3266c9", "#d9642a", "#15896b", "#a8479b", "#8c7100", "#546070")
MAX_POINTS = 2000  # per line of the page; more are cut to the extremes of their neighbourhood
_TITLES = {
    "train/lr": "learning rate",
    "train/grad_norm": "gradient norm",
    "perf/tokens_per_s": "tokens per second",
}


@dataclass(frozen=True, kw_only=True)
class _Run:
    name: str
    series: Mapping[str, Series]


def loss_png(run_folders: Sequence[str | Path], output: str | Path) -> Path:
    """Draw loss (train, smoothed over a pale original; validation), learning rate and gradient
    norm of the runs into a PNG.

    Raises:
        DataError: a run has no metrics.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = _read(run_folders)
    figure = Figure(figsize=(10, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(2, 1))
    axes = figure.add_subplot(grid[:, 0])
    _style(axes, "loss (nats per token)")
    for i, run in enumerate(runs):
        _draw_losses(axes, run, COLORS[i % len(COLORS)], alone=len(runs) == 1)
    _fit_losses(axes, runs)
    axes.set_xlabel("step")
    if axes.get_legend_handles_labels()[1]:
        for text in axes.legend(frameon=False).get_texts():
            text.set_parse_math(False)  # a run's name is text
    for row, name in enumerate(("train/lr", "train/grad_norm")):
        small = figure.add_subplot(grid[row, 1])
        _style(small, _TITLES[name])
        for i, run in enumerate(runs):
            points = run.series.get(name, Series())
            small.plot(
                points.steps, points.values, color=COLORS[i % len(COLORS)], lw=1.2, alpha=0.85
            )
    small.set_xlabel("step")
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, metadata={"Software": None})
    return output


def loss_html(run_folders: Sequence[str | Path], output: str | Path) -> Path:
    """Write a page with all metrics of the runs: hover for values, drag to zoom, smoothing.

    Raises:
        DataError: a run has no metrics.
    """
    runs = _read(run_folders)
    data = {
        "colors": COLORS,
        "panels": _panels({name for run in runs for name in run.series}),
        "runs": [
            {"name": run.name, "series": {k: _for_page(s) for k, s in run.series.items()}}
            for run in runs
        ],
    }
    # "<" could end the script element that the data stands in
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    slots = {"title": html.escape(", ".join(run.name for run in runs)), "data": text}
    page = resources.files("xtdist.track").joinpath("plot.html").read_text(encoding="utf-8")
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    page = re.sub(r"\{\{(title|data)\}\}", lambda slot: slots[slot[1]], page)
    output.write_text(page, encoding="utf-8")
    return output


def smooth(values: Sequence[float], window: float) -> list[float]:
    """Exponential mean over about ``window`` points, over fewer at the start, where a mean would
    lag behind a steep curve; gaps (values that are not finite) stay gaps."""
    total = weight = 0.0
    out = []
    for i, value in enumerate(values):
        if math.isfinite(value):
            new = 2 / (min(max(window, 1.0), 1 + i / 10) + 1)
            total += new * (value - total)
            weight += new * (1 - weight)
            out.append(total / weight)
        else:
            out.append(math.nan)
    return out


def thin(series: Series, limit: int = MAX_POINTS) -> Series:
    """At most ``limit`` points: the first, the last, and each neighbourhood's lowest and highest,
    so that no spike is lost. Points that are not finite count as spikes."""
    n = len(series.steps)
    if n <= limit:
        return series
    kept = {0, n - 1}
    buckets = max(1, (limit - 2) // 2)
    for b in range(buckets):
        part = range(b * n // buckets, (b + 1) * n // buckets)
        kept.add(min(part, key=lambda i: _rank(series.values[i], -math.inf)))
        kept.add(max(part, key=lambda i: _rank(series.values[i], math.inf)))
    order = sorted(kept)
    return Series(
        steps=[series.steps[i] for i in order],
        values=[series.values[i] for i in order],
        times=[series.times[i] for i in order],
    )


def _rank(value: float, nan: float) -> float:
    return nan if math.isnan(value) else value


def _read(run_folders: Sequence[str | Path]) -> list[_Run]:
    if not run_folders:
        raise DataError("no run to plot; give at least one run folder")
    runs = []
    for folder in run_folders:
        series = read_series(folder)
        if not series:
            raise DataError(f"{Path(folder) / FILE}: no metrics to plot; give a run's folder")
        name = os.fsencode(Path(folder).resolve().name).decode(errors="replace")
        runs.append(_Run(name=name, series=series))
    return runs


def _draw_losses(axes: Axes, run: _Run, color: str, *, alone: bool) -> None:
    of_run = "" if alone else f", {run.name}"
    train = run.series.get("train/loss", Series())
    if train.steps:
        even = smooth(train.values, len(train.values) / 40)
        axes.plot(train.steps, train.values, color=color, lw=0.8, alpha=0.25)
        axes.plot(train.steps, even, color=color, lw=1.6, label=f"train{of_run}")
    for name in sorted(_loss_names(run.series) - {"train/loss"}):
        points = run.series[name]
        axes.plot(
            points.steps,
            points.values,
            color=COLORS[1] if alone else color,
            lw=1.4,
            ls="-" if alone else "--",
            marker="o",
            ms=4,
            label=f"{name.split('/')[1]}{of_run}",
        )


def _fit_losses(axes: Axes, runs: Sequence[_Run]) -> None:
    """Leave the highest spikes out of the picture: they would press everything else flat."""
    values = sorted(
        v
        for run in runs
        for name in _loss_names(run.series)
        for v in run.series[name].values
        if math.isfinite(v)
    )
    if len(values) >= 20:
        low, high = values[0], values[int(0.995 * (len(values) - 1))]
        if high > low:
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(visible=True, color="#e3e5e8", lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b8bcc2")


def _loss_names(names: Mapping[str, Series] | set[str]) -> set[str]:
    return {
        n for n in names if n == "train/loss" or (n.startswith("eval/") and n.endswith("/loss"))
    }


def _panels(names: set[str]) -> list[dict[str, Any]]:
    """Which metrics stand together: the losses first, then one panel per other metric."""
    losses = sorted(_loss_names(names), key=lambda n: (n != "train/loss", n))
    known = list(_TITLES)
    place = {name: known.index(name) if name in known else len(known) for name in names}
    rest = sorted(names - set(losses), key=lambda n: (place[n], n))
    first = [{"title": "loss (nats per token)", "metrics": losses}] if losses else []
    return first + [{"title": _TITLES.get(n, n), "metrics": [n]} for n in rest]


def _for_page(series: Series) -> dict[str, list[Any]]:
    kept = thin(series)
    values = [float(f"{v:.6g}") if math.isfinite(v) else None for v in kept.values]
    return {"x": kept.steps, "y": values}
