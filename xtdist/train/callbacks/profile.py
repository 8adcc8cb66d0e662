"""A trace of chosen steps: what ran when, on the CPU and the GPU."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from xtdist.train.callbacks.base import Callback
from xtdist.train.run import Run
from xtdist.train.spec.loop import ProfileSpec
from xtdist.train.step import StepResult


class Profile(Callback):
    """The steps of ``loop.profile``, of each rank, into ``<run>/profile/rank-<r>.json.gz``, for
    chrome://tracing or ui.perfetto.dev. Steps at other times cost nothing."""

    def __init__(self, spec: ProfileSpec, *, rank: int) -> None:
        self._spec, self._rank = spec, rank
        self._running: profile | None = None

    def started(self, run: Run) -> None:
        self._begin(run)

    def stepped(self, run: Run, result: StepResult) -> None:
        if self._running is not None and run.position.step >= self._spec.first + self._spec.steps:
            self._running.stop()
            path = run.folder / "profile" / f"rank-{self._rank}.json.gz"
            path.parent.mkdir(exist_ok=True)
            self._running.export_chrome_trace(str(path))
            self._running = None
        self._begin(run)

    def close(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None

    def _begin(self, run: Run) -> None:
        if run.position.step == self._spec.first:
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._running = profile(activities=[ProfilerActivity.CPU, *cuda], record_shapes=True)
            self._running.start()
