"""What a step of ours costs beyond one of a bare loop, and what checkpoints cost the steps."""

from __future__ import annotations

import itertools
import math
import shutil
import statistics
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import train_bare
import train_runs as runs
from train_runs import LARGE, SMALL, Place, Shape

from xtdist.checkpoint.naming import step_of

OVERHEAD = (
    *("workers", "ZeRO", "bare step, ms", "our step, ms", "overhead (median)"),
    *("lowest, highest pair", "overhead of the mean step", "goal"),
)
STALL = (
    *("workers", "step, ms", "checkpoint, MB", "saves", "commit, s", "step path waits, ms"),
    *("slower steps meanwhile, ms", "the same of undisturbed steps, ms"),
    *("stall share at one a minute", "goal"),
)
OVERHEAD_GOAL, STALL_GOAL = 0.05, 0.005


@dataclass(frozen=True, kw_only=True)
class OverheadSizes:
    """``pairs``: of a run of ours and one of the bare loop; what is compared."""

    shape: Shape = SMALL
    steps: int = 80
    pairs: int = 5
    stages: tuple[int, ...] = (0, 2)
    workers: tuple[int, ...] = (1, 2)


@dataclass
class Compared:
    """Step times of both, in seconds: medians and means of each pair."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)

    def add(self, ours: Sequence[float], bare: Sequence[float], *, mean: float) -> None:
        """One pair; ``mean``: seconds of our mean step by the records' times."""
        self.ours.append(statistics.median(ours))
        self.bare.append(statistics.median(bare))
        self.means.append(mean / statistics.fmean(bare))

    def row(self, workers: int, stage: int) -> list[str]:
        ratios = [a / b - 1 for a, b in zip(self.ours, self.bare, strict=True)]
        median = statistics.median(ratios)
        return [
            *(str(workers), str(stage)),
            *(f"{1e3 * statistics.median(each):.0f}" for each in (self.bare, self.ours)),
            f"{median:+.1%}",
            f"{min(ratios):+.1%}, {max(ratios):+.1%}",
            f"{statistics.median(self.means) - 1:+.1%}",
            _judged(median, OVERHEAD_GOAL),
        ]


def overhead(place: Place, sizes: OverheadSizes) -> list[list[str]]:
    """Rows of the table; runs alternate with the bare loop, one of each in turn."""
    rows = place.rows(sizes.shape)
    found: dict[tuple[int, int], Compared] = {}
    for pair in range(sizes.pairs):
        for workers in sizes.workers:
            tree = place.tree("bare", sizes.shape, rows=rows, workers=workers)
            tree["loop"]["steps"] = sizes.steps
            spec = runs.spec_of(tree | {"name": f"bare-{workers}-{pair}"})
            bare = train_bare.bare_steps(spec, world=workers, folder=place.folder)
            for stage in sizes.stages:
                name = f"ours-{workers}-{stage}-{pair}"
                done = _our_steps(place, tree | {"name": name}, stage)
                _check_same(done, bare)
                compared = found.setdefault((workers, stage), Compared())
                ours = [r["perf/step_s"] for r in done[runs.WARM_STEPS :]]
                since = done[runs.WARM_STEPS - 1]
                mean = (done[-1]["time"] - since["time"]) / (done[-1]["step"] - since["step"])
                compared.add(ours, bare.seconds[runs.WARM_STEPS :], mean=mean)
                print(f"  pair {pair}:", *compared.row(workers, stage), flush=True)
    return [compared.row(*key) for key, compared in found.items()]


def _our_steps(place: Place, tree: dict[str, Any], stage: int) -> list[dict[str, Any]]:
    config = runs.write_config(
        tree | {"engine": tree["engine"] | {"zero_stage": stage}}, place.folder
    )
    with runs.running(config):
        pass
    folder = Path(tree["output"]) / tree["name"]
    done = runs.records(folder)
    shutil.rmtree(folder)
    return done


def _check_same(done: Sequence[dict[str, Any]], bare: train_bare.Steps) -> None:
    """Both must have computed the same, or there is nothing to compare."""
    ours = [record["train/loss"] for record in done]
    if len(ours) != len(bare.losses):
        raise ValueError(f"{len(ours)} steps of ours, {len(bare.losses)} of the bare loop")
    off = max(abs(a - b) for a, b in zip(ours, bare.losses, strict=True))
    if off > 1e-4:
        raise ValueError(f"the bare loop trains something else: losses differ by {off:.1e}")


@dataclass(frozen=True, kw_only=True)
class StallSizes:
    """A checkpoint every ``every_s`` or so, ``saves`` times."""

    shape: Shape = LARGE
    saves: int = 15
    every_s: float = 10.0
    workers: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Save:
    """Times are seconds since 1970. ``waits_s``: of the step path, at the save's begin."""

    step: int
    began: float
    waits_s: float
    committed: float

    @property
    def commit_s(self) -> float:
        return self.committed - self.began


@dataclass(frozen=True)
class Stalls:
    """Of all saves that could be told apart. ``slower_s``: what steps took more than undisturbed
    ones until the save was committed; ``placebo_s``: the same of as many undisturbed steps."""

    saves: list[Save]
    slower_s: list[float]
    placebo_s: list[float]
    step_s: float

    @property
    def waits_s(self) -> float:
        return statistics.median(save.waits_s for save in self.saves)

    def share(self, every_s: float) -> float:
        """Of the time, with a save every so many seconds."""
        return (self.waits_s + max(statistics.median(self.slower_s), 0.0)) / every_s


def stalls_of(steps: Sequence[dict[str, Any]], saves: Sequence[Save]) -> Stalls:
    """What saves cost, from the records of all steps in order. An interval is from one record to
    the next and contains all that happens between steps. The first save is left out: it makes what
    later ones find; so is one that the run did not outlast."""
    ends = [(record["step"], record["time"]) for record in steps]
    seconds = {b[0]: b[1] - a[1] for a, b in itertools.pairwise(ends)}
    times = dict(ends)
    busy: dict[int, list[int]] = {}  # by save: steps that were done while it was written
    for save in saves:
        after = [s for s in seconds if s > save.step]
        last = next((s for s in after if times[s] > save.committed), None)
        if last is not None:
            busy[save.step] = [s for s in after if s <= last + 1]  # one more hears of the end
    taken = {s for several in busy.values() for s in several} | {save.step + 1 for save in saves}
    first = min(seconds, default=0) + runs.WARM_STEPS
    quiet = [s for s in seconds if s not in taken and s >= first]
    if not quiet or not busy.keys() - {saves[0].step}:
        raise ValueError("no save lies between undisturbed steps: save less often")
    typical = statistics.median(seconds[s] for s in quiet)
    whole = [save for save in saves[1:] if save.step in busy]
    slower, placebo = [], []
    for save in whole:
        lost = sum(seconds[s] - typical for s in busy[save.step] if s in seconds)
        slower.append(lost - save.waits_s)
        before = [s for s in quiet if s <= save.step][-len(busy[save.step]) :]
        if before:
            rate = statistics.fmean(seconds[s] - typical for s in before)
            placebo.append(rate * len(busy[save.step]))
    return Stalls(whole, slower, placebo or [math.nan], typical)


def stall(place: Place, sizes: StallSizes) -> Iterator[tuple[int, Stalls, float]]:
    """(workers, what saves cost, bytes of a checkpoint) for each number of workers."""
    rows = place.rows(sizes.shape)
    tree = place.tree("try-stall", sizes.shape, rows=rows, workers=1)
    taken = train_bare.bare_steps(runs.spec_of(tree), world=1, folder=place.folder).seconds
    every = max(math.ceil(sizes.every_s / statistics.median(taken[2:])), 8)
    for workers in sizes.workers:
        tree = place.tree(f"stall-{workers}", sizes.shape, rows=rows, workers=workers)
        tree["loop"]["steps"] = (sizes.saves + 1) * every + every // 2
        tree["checkpoint"] = {"every": every, "keep": 2}
        config = runs.write_config(tree, place.folder)
        folder = Path(tree["output"]) / tree["name"]
        with runs.running(config) as process:
            seen, size = _watch(folder / "checkpoints", process)
        began = {r["step"]: r for r in runs.records(folder, "perf/checkpoint_s")}
        saves = [_save(began[step], at) for step, at in sorted(seen.items()) if step in began]
        yield workers, stalls_of(runs.records(folder), saves), size
        shutil.rmtree(folder)


def _save(record: dict[str, Any], committed: float) -> Save:
    """``record``: what a run writes right after a save has begun."""
    waits_s = record["perf/checkpoint_s"]
    return Save(record["step"], record["time"] - waits_s, waits_s, committed)


def stall_row(workers: int, found: Stalls, size: float) -> list[str]:
    """One row of the table."""
    share = found.share(60.0)
    commits = [save.commit_s for save in found.saves]
    return [
        str(workers),
        f"{1e3 * found.step_s:.0f}",
        f"{size / 1e6:.0f}",
        str(len(found.saves)),
        f"{statistics.median(commits):.2f} (most {max(commits):.2f})",
        f"{1e3 * found.waits_s:.0f} (most {1e3 * max(s.waits_s for s in found.saves):.0f})",
        f"{1e3 * statistics.median(found.slower_s):.0f}",
        f"{1e3 * statistics.median(found.placebo_s):.0f}",
        f"{share:.2%}",
        _judged(share, STALL_GOAL),
    ]


def _watch(root: Path, process: subprocess.Popen[bytes]) -> tuple[dict[int, float], float]:
    """When each checkpoint got its manifest, by step, and the size of one, until the run ends."""
    seen: dict[int, float] = {}
    size = 0.0
    pause = threading.Event()
    while process.poll() is None:
        for manifest in root.glob("step_*/manifest.json"):
            step = step_of(manifest.parent.name)
            if step in seen:
                continue
            try:
                seen[step] = manifest.stat().st_mtime
                files = (p for p in manifest.parent.rglob("*") if p.is_file())
                size = float(sum(p.stat().st_size for p in files))
            except FileNotFoundError:  # deleted meanwhile: there are newer ones
                continue
        pause.wait(0.2)
    return seen, size


def _judged(value: float, goal: float) -> str:
    return f"at most {goal:.1%}: {'reached' if value <= goal else 'MISSED'}"
