"""The data of a page's charts: every metric of every run, thinned, along steps, tokens, time."""

from __future__ import annotations

import bisect
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtdist.config import DataError
from xtdist.track.events import Mark, first_sign, parts_of, read_marks
from xtdist.track.records import FILE, Series, read_series

MAX_POINTS = 2000  # of a line; more are cut to the extremes of their neighbourhood
SMOOTHINGS = (100, 40, 10)  # a mean is over one such part of a run's records
SMOOTHED = ("train/loss", "train/grad_norm", "perf/tokens_per_s", "perf/mfu", "perf/step_s")
LEAST_SMOOTHED = 30  # records; below it, a mean would hide more than it shows
PHASES = (
    "perf/forward_s",
    "perf/backward_s",
    "perf/reduce_s",
    "perf/optimizer_s",
    "perf/data_wait_s",
    "perf/rest_s",
    "perf/other_s",
)
TITLES = {
    "train/lr": "learning rate",
    "train/grad_norm": "gradient norm (before clipping)",
    "perf/tokens_per_s": "tokens per second, all workers",
    "perf/mfu": "model FLOPs utilisation (share of peak, 0 to 1)",
    "perf/step_s": "time of a step (s)",
}
MEMORY = ("perf/rss_gb", "perf/cuda_allocated_gb", "perf/cuda_reserved_gb")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was recorded of a run. ``began``: seconds since 1970. ``tokens``: which these are."""

    name: str
    series: Mapping[str, Series]
    marks: Sequence[Mark]
    began: float
    tokens: str | None = None


def note_on(runs: Sequence[Run]) -> str:
    """Why their losses can't be compared; empty if they can."""
    if len({run.tokens for run in runs} - {None}) < 2:
        return ""
    return "these runs' tokenizers differ: compare bits per byte, not losses per token"


def read_run(folder: str | Path) -> Run:
    """The run in ``folder``; without metrics, one without series."""
    series = read_series(folder)
    return Run(
        name=os.fsencode(Path(folder).resolve().name).decode(errors="replace"),
        series=series,
        marks=read_marks(folder),
        began=first_sign(list(series.values()), folder),
        tokens=_tokenizer_of(Path(folder)),
    )


def _tokenizer_of(folder: Path) -> str | None:
    try:
        return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    except OSError:
        return None


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Several, which have metrics.

    Raises:
        DataError: one has none.
    """
    if not folders:
        raise DataError("no run to plot; give at least one run folder")
    runs = []
    for folder in folders:
        run = read_run(folder)
        if not run.series:
            raise DataError(f"{Path(folder) / FILE}: no metrics to plot; give a run's folder")
        runs.append(run)
    return runs


def chart_data(runs: Sequence[Run]) -> dict[str, Any]:
    """For ``write_page``. Per series: ``x`` steps, ``k`` tokens seen (None: not recorded), ``t``
    seconds since the run began, ``y`` values (None: not finite), ``g`` and ``a`` the part and
    attempt of each point (a line is broken between two), ``n`` records before thinning; for some
    ``s`` means of about ``w`` records. Numbers have six digits."""
    return {
        "panels": panels({name for run in runs for name in run.series}, alone=len(runs) == 1),
        "runs": [
            {
                "name": run.name,
                "series": {k: _for_page(run, k) for k in run.series if k != "train/tokens"},
                "marks": [_mark(run, mark) for mark in run.marks],
            }
            for run in runs
        ],
    }


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row of text for each run and metric: what the charts show, in numbers."""
    rows = []
    for run in runs:
        for name in sorted(run.series):
            s = run.series[name]
            good = [(v, i) for i, v in enumerate(s.values) if math.isfinite(v)]
            low, high = (min(good), max(good)) if good else ((math.nan, 0), (math.nan, 0))
            rows.append(
                {
                    "run": run.name,
                    "metric": name,
                    "count": len(s.values),
                    "bad": len(s.values) - len(good),
                    "first": f"{s.values[0]:.5g}",
                    "last": f"{s.values[-1]:.5g}",
                    "low": f"{low[0]:.5g} ({s.steps[low[1]]})" if good else "-",
                    "high": f"{high[0]:.5g} ({s.steps[high[1]]})" if good else "-",
                }
            )
    return rows


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
    order = kept_points(series.values, limit)
    if len(order) == len(series.steps):
        return series
    return Series(
        steps=[series.steps[i] for i in order],
        values=[series.values[i] for i in order],
        times=[series.times[i] for i in order],
    )


def kept_points(values: Sequence[float], limit: int = MAX_POINTS) -> list[int]:
    """Which ones :func:`thin` keeps."""
    n = len(values)
    if n <= limit:
        return list(range(n))
    kept = {0, n - 1}
    buckets = max(1, (limit - 2) // 2)
    for b in range(buckets):
        part = range(b * n // buckets, (b + 1) * n // buckets)
        kept.add(min(part, key=lambda i: _rank(values[i], -math.inf)))
        kept.add(max(part, key=lambda i: _rank(values[i], math.inf)))
    return sorted(kept)


def loss_names(names: Mapping[str, Series] | set[str]) -> list[str]:
    """The training loss, then those of validations."""
    found = {n for n in names if n == "train/loss" or (n.startswith("eval/") and "loss" in n)}
    return sorted(found, key=lambda n: (n != "train/loss", n))


def panels(names: set[str], *, alone: bool) -> list[dict[str, Any]]:
    """Which metrics stand together. Steps' phases of several runs get a chart each."""
    bits = sorted(n for n in names if n.startswith("eval/") and "bits_per_byte" in n)
    phases = [n for n in PHASES if n in names]
    groups: list[tuple[str, Sequence[str]]] = [
        ("loss (nats per token)", loss_names(names)),
        ("bits per byte", bits),
        *((TITLES[n], [n]) for n in ("train/lr", "train/grad_norm")),
        *((TITLES[n], [n]) for n in ("perf/tokens_per_s", "perf/mfu", "perf/step_s")),
    ]
    if alone:
        groups.append(("time of a step by phase (s)", phases))
    else:
        groups += [(f"time of a step: {_label(n)} (s)", [n]) for n in phases]
    groups.append(("memory (GB)", MEMORY))
    used = {n for _, metrics in groups for n in metrics} | {"train/tokens"}
    out = [
        _panel(title, [n for n in metrics if n in names], more=False) for title, metrics in groups
    ]
    out += [_panel(n, [n], more=True) for n in sorted(names - used)]
    return [panel for panel in out if panel["metrics"]]


def _panel(title: str, metrics: Sequence[str], *, more: bool) -> dict[str, Any]:
    """``zero``: the quantity has a natural zero; ``linear``: a log scale would say nothing."""
    return {
        "title": title,
        "metrics": [{"name": n, "label": _label(n), "points": n[:5] == "eval/"} for n in metrics],
        "zero": all(n.startswith("perf/") or n == "train/lr" for n in metrics),
        "linear": list(metrics) == ["train/lr"],
        "more": more,
    }


def _label(metric: str) -> str:
    kind, *between, last = metric.split("/")
    if kind == "perf":
        return last.removesuffix("_s").removesuffix("_gb").replace("_", " ")
    averaged = " (averaged weights)" if last.startswith("ema_") else ""
    return f"{'validation' if between == ['valid'] else ' '.join(between) or kind}{averaged}"


def _rank(value: float, nan: float) -> float:
    return nan if math.isnan(value) else value


def _for_page(run: Run, name: str) -> dict[str, Any]:
    s = run.series[name]
    keep, parts = kept_points(s.values), parts_of(s.steps)
    starts = [mark.time for mark in run.marks if mark.kind == "restart"]
    tokens = _tokens(run)
    out: dict[str, Any] = {
        "n": len(s.steps),
        "x": [s.steps[i] for i in keep],
        "k": [tokens.get(s.steps[i]) for i in keep],
        "t": [round(s.times[i] - run.began, 2) for i in keep],
        "y": [_six(s.values[i]) for i in keep],
        "g": [parts[i] for i in keep],
        "a": [bisect.bisect_right(starts, s.times[i]) for i in keep],
    }
    if name in SMOOTHED and len(s.values) >= LEAST_SMOOTHED:
        out["w"] = [max(2, round(len(s.values) / part)) for part in SMOOTHINGS]
        even = [smooth(s.values, window) for window in out["w"]]
        out["s"] = [[_six(values[i]) for i in keep] for values in even]
    return out


def _tokens(run: Run) -> dict[int, float]:
    """Seen until a step, where that was recorded."""
    s = run.series.get("train/tokens", Series())
    return {0: 0.0} | {a: v for a, v in zip(s.steps, s.values, strict=True) if math.isfinite(v)}


def _mark(run: Run, mark: Mark) -> dict[str, Any]:
    since = max(0.0, mark.time - run.began)
    place = {"step": mark.step, "tokens": _tokens(run).get(mark.step), "time": round(since, 2)}
    return {"kind": mark.kind, "text": mark.text, **place}


def _six(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
