"""Plots of runs from what their folders hold: ``loss.png`` and one self-contained HTML page.

Both overlay any number of runs. The page loads nothing from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtdist.files import replacing
from xtdist.track.curves import (
    MAX_POINTS,
    PHASES,
    TITLES,
    Run,
    chart_data,
    loss_names,
    note_on,
    read_runs,
    smooth,
    summary,
    thin,
)
from xtdist.track.events import parts_of
from xtdist.track.page import write_page
from xtdist.track.records import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLORS", "loss_html", "loss_png", "smooth", "thin"]

COLORS = ("#3266c9", "#d9642a", "#0f7f60", "#a8479b", "#4a2600", "#8a95a1")
LEFT_OUT = 0.995  # of the losses are in the picture: the highest would press all else flat
_SMALL = ("train/lr", "train/grad_norm", "perf/tokens_per_s")


def loss_html(run_folders: Sequence[str | Path], output: str | Path) -> Path:
    """Write a page with all metrics of the runs along steps, tokens or time: values by mouse or
    keys, zoom, log scale, smoothing, lines shown and hidden, and the numbers as a table.

    Raises:
        DataError: a run has no metrics.
    """
    runs = read_runs(run_folders)
    facts = {
        "title": ", ".join(run.name for run in runs),
        "note": note_on(runs),
        "summary": summary(runs),
        "max_points": MAX_POINTS,
    }
    return write_page(output, "plot.html", data=chart_data(runs), facts=facts)


def loss_png(run_folders: Sequence[str | Path], output: str | Path) -> Path:
    """Draw loss (train, smoothed over a pale original; validation), bits per byte, learning rate,
    gradient norm, tokens per second and where a step's time goes into a PNG.

    Raises:
        DataError: a run has no metrics.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = read_runs(run_folders)
    figure = Figure(figsize=(10, 7), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 3, width_ratios=(1, 1, 1))
    big = figure.add_subplot(grid[:2, :2])
    _style(big, "loss (nats per token)")
    note = note_on(runs)
    big.text(0.02, 0.02, note, transform=big.transAxes, fontsize=8, color="#b3261e")
    for i, run in enumerate(runs):
        _draw_losses(big, run, COLORS[i % len(COLORS)], alone=len(runs) == 1)
        for mark in run.marks:
            color = "#b3261e" if mark.kind == "intervention" else "#8a929c"
            big.axvline(mark.step, color=color, lw=0.8, ls=":")
    _fit_losses(big, runs)
    big.set_xlabel(_step_label(runs))
    if big.get_legend_handles_labels()[1]:
        for text in big.legend(frameon=False, fontsize=8).get_texts():
            text.set_parse_math(False)  # a run's name is text
    for place, name in zip((grid[0, 2], grid[1, 2], grid[2, 1]), _SMALL, strict=True):
        _draw_metric(figure.add_subplot(place), runs, name)
    _draw_bits(figure.add_subplot(grid[2, 0]), runs)
    _draw_times(figure.add_subplot(grid[2, 2]), runs)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    picture = BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    with replacing(output) as file:
        file.write(picture.getvalue())
    return output


def _step_label(runs: Sequence[Run]) -> str:
    marks = {mark.kind for run in runs for mark in run.marks}
    told = [f"{kind}s" for kind in ("restart", "intervention") if kind in marks]
    return "step" + (f" (dotted: {', '.join(told)})" if told else "")


def _draw_losses(axes: Axes, run: Run, color: str, *, alone: bool) -> None:
    of_run = "" if alone else f", {run.name}"
    names = loss_names(run.series)
    train = run.series.get("train/loss", Series())
    if train.steps:
        window = max(2, round(len(train.values) / 40))
        even = Series(steps=train.steps, values=smooth(train.values, window), times=train.times)
        _line(axes, train, color=color, lw=0.8, alpha=0.3)
        _line(axes, even, color=color, lw=1.6, label=f"train, mean of ≈{window} records{of_run}")
    for i, name in enumerate(n for n in names if n != "train/loss"):
        own = COLORS[1 + i % (len(COLORS) - 1)] if alone else color
        what = name.split("/")[1] + (", averaged weights" if "ema_" in name else "")
        look = {
            "ls": "-" if alone else ":" if "ema_" in name else "--",
            "marker": "o",
            "ms": 3.5,
            "lw": 1.4,
        }
        _line(axes, run.series[name], color=own, label=f"{what}{of_run}", **look)


def _line(axes: Axes, series: Series, **look: Any) -> None:
    """Broken where records are missing; what is not finite is a cross at the foot."""
    parts = parts_of(series.steps)
    xs: list[float] = []
    ys: list[float] = []
    for i, (step, value) in enumerate(zip(series.steps, series.values, strict=True)):
        if i and parts[i] != parts[i - 1]:
            xs.append(math.nan)
            ys.append(math.nan)
        xs.append(step)
        ys.append(value if math.isfinite(value) else math.nan)
    axes.plot(xs, ys, **look)
    bad = [s for s, v in zip(series.steps, series.values, strict=True) if not math.isfinite(v)]
    if bad:
        foot = axes.get_xaxis_transform()
        axes.plot(bad, [0.02] * len(bad), "x", color=look["color"], ms=5, transform=foot)


def _draw_metric(axes: Axes, runs: Sequence[Run], name: str) -> None:
    _style(axes, TITLES[name])
    for i, run in enumerate(runs):
        if name in run.series:
            _line(axes, run.series[name], color=COLORS[i % len(COLORS)], lw=1.1)
    _finish(axes, zero=name != "train/grad_norm")


def _draw_bits(axes: Axes, runs: Sequence[Run]) -> None:
    _style(axes, "bits per byte (validation)")
    for i, run in enumerate(runs):
        for name in sorted(n for n in run.series if n.startswith("eval/")):
            if name.endswith("bits_per_byte"):
                ls = ":" if "ema_" in name else "-"
                _line(
                    axes, run.series[name], color=COLORS[i % len(COLORS)], ls=ls, marker="o", ms=3
                )
    _finish(axes, zero=False)


def _draw_times(axes: Axes, runs: Sequence[Run]) -> None:
    """Of one run each phase's mean share of a step; of several the time of a step."""
    if len(runs) > 1:
        _draw_metric(axes, runs, "perf/step_s")
        return
    _style(axes, "mean seconds of a step by phase")
    series = runs[0].series
    phases = [n for n in PHASES if any(map(math.isfinite, series.get(n, Series()).values))]
    means = []
    for name in phases:
        good = [v for v in series[name].values if math.isfinite(v)]
        means.append(sum(good) / len(good))
    labels = [n.removeprefix("perf/").removesuffix("_s").replace("_", " ") for n in phases]
    axes.barh(labels[::-1], means[::-1], color=COLORS[0])
    if not phases:
        _finish(axes, zero=True)


def _finish(axes: Axes, *, zero: bool) -> None:
    if not axes.lines and not axes.patches:
        axes.text(0.5, 0.5, "not recorded", ha="center", transform=axes.transAxes, color="#5b646f")
        axes.set_xticks([])
        axes.set_yticks([])
    elif zero:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    elif axes.get_ylim()[0] > 0:
        axes.set_title("does not begin at 0", loc="right", fontsize=7, color="#5b646f")
    axes.set_xlabel("step", fontsize=8)


def _fit_losses(axes: Axes, runs: Sequence[Run]) -> None:
    """Leave the highest spikes out of the picture, and say so."""
    values = sorted(
        v
        for run in runs
        for name in loss_names(run.series)
        for v in run.series[name].values
        if math.isfinite(v)
    )
    if len(values) < 20:
        return
    low, high = values[0], values[int(LEFT_OUT * (len(values) - 1))]
    if high > low:
        room = 0.05 * (high - low)
        axes.set_ylim(low - room, high + room)
        above = sum(v > high + room for v in values)
        note = "the axis does not begin at 0"
        note += f"; {above} of {len(values)} points are above it" if above else ""
        axes.set_title(note, loc="right", fontsize=7, color="#5b646f")


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(visible=True, color="#e3e5e8", lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b8bcc2")
