"""How good a sweep's trials became, against each value that was varied."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtdist.launch.sweep.draw import shown
from xtdist.launch.sweep.records import Result
from xtdist.launch.sweep.spec import ChoiceConfig, Dimension, LogUniformConfig, SweepSpec
from xtdist.track import read_series
from xtdist.track.plots import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = {"finished": ("o", COLORS[0]), "stopped": ("v", COLORS[1]), "failed": ("x", COLORS[3])}
OTHER = ("s", COLORS[5])
MOST_TICKS = 8


def results_png(sweep: SweepSpec, results: Sequence[Result], folder: Path) -> Path:
    """``results.png``: one field for each place of the space, and the curves of all trials.
    ``results``: the measured ones, the best first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(sweep.space) + 1
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.4 * columns, 3.6 * rows), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    fields = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for spare in fields[count:]:
        spare.set_axis_off()
    for axes, path in zip(fields, sweep.space, strict=False):
        _against(axes, sweep, results, path)
    _curves(fields[count - 1], sweep, results)
    handles, labels = fields[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    output = folder / "results.png"
    figure.savefig(output, metadata={"Software": None})
    return output


def _against(axes: Axes, sweep: SweepSpec, results: Sequence[Result], path: str) -> None:
    named = any(not isinstance(row.values[path], (int, float)) for row in results) or any(
        isinstance(row.values[path], bool) for row in results
    )
    words = sorted({_word(row.values[path]) for row in results}) if named else []

    def place(value: Any) -> float:
        return float(words.index(_word(value))) if named else float(value)

    for status in dict.fromkeys(row.status for row in results):
        mark, color = MARKS.get(status, OTHER)
        of_it = [row for row in results if row.status == status]
        axes.plot(
            [place(row.values[path]) for row in of_it],
            [row.best or 0.0 for row in of_it],
            linestyle="",
            marker=mark,
            color=color,
            alpha=0.85,
            label="stopped early" if status == "stopped" else status,
        )
    best = results[0]
    axes.plot(
        [place(best.values[path])],
        [best.best or 0.0],
        linestyle="",
        marker="o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor=COLORS[2],
        markeredgewidth=1.8,
        label="best",
    )
    if named:
        axes.set_xticks(range(len(words)), words)
        axes.set_xlim(-0.5, len(words) - 0.5)
    else:
        _scale(axes, sweep.space[path])
    _label(axes, path, sweep.metric)


def _curves(axes: Axes, sweep: SweepSpec, results: Sequence[Result]) -> None:
    """The metric over the steps; the best trial's on top."""
    for i, row in reversed(list(enumerate(results))):
        series = read_series(row.folder).get(sweep.metric)
        if series is None:
            continue
        color, width = (COLORS[2], 2.0) if i == 0 else ("#9aa5b1", 0.9)
        axes.plot(series.steps, series.values, color=color, lw=width, marker=".", markersize=4)
        if i == 0:
            axes.set_title(f"best: {row.name}, {shown(row.values)[:60]}", fontsize=8)
    _label(axes, "step", sweep.metric)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _scale(axes: Axes, dimension: Dimension) -> None:
    """The whole range that there was, and a tick for each choice where there are few."""
    from matplotlib.ticker import NullFormatter, NullLocator

    if isinstance(dimension, ChoiceConfig):
        numbers = sorted(v for v in dimension.values if isinstance(v, (int, float)))
        low, high = numbers[0], numbers[-1]
    else:
        numbers, low, high = [], dimension.low, dimension.high
    if isinstance(dimension, LogUniformConfig) or (low > 0 and high >= 30 * low):
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** 0.06, high * (high / low) ** 0.06)
        if high >= 10 * low:
            axes.xaxis.set_minor_formatter(NullFormatter())
    elif high > low:
        axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    if 0 < len(numbers) <= MOST_TICKS:
        axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
        axes.xaxis.set_minor_locator(NullLocator())


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
