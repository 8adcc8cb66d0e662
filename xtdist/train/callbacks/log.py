"""The metrics of every step."""

from __future__ import annotations

import math
import statistics

import torch
import torch.distributed as dist

from xtdist.track import Ledger
from xtdist.train.callbacks.base import Callback
from xtdist.train.meters import Phases
from xtdist.train.meters.flops import flops_per_token, peak_tflops
from xtdist.train.meters.ranks import (
    Stragglers,
    device_memory,
    gather,
    gathered_hosts,
    host_state,
    own_seconds,
    slowest_of,
)
from xtdist.train.meters.speed import Speed, buckets_of
from xtdist.train.run import Run
from xtdist.train.step import StepResult


class Log(Callback):
    """One record a step, in metrics.jsonl, MLflow and Ray's metrics; the ledger of where time goes;
    and now and then a comparison of the ranks."""

    _speed: Speed
    _stragglers: Stragglers
    _phases: Phases
    _ledger: Ledger | None = None
    _ended = False

    def started(self, run: Run) -> None:
        step, self._tokens = run.position.step, run.position.tokens
        self._own: list[float] = []
        self._phases = run.phases
        self._stragglers = Stragglers(run.spec.track.stragglers, gathered_hosts())
        self._speed = _speed_of(run)
        lap = run.phases.lap(step=step)
        if run.tracker is not None:
            self._ledger = Ledger(run.folder)
            self._ledger.start(step, ago_s=lap.total, attempt=True)
            self._ledger.spend(step, buckets_of(lap), flush=True)

    def stepped(self, run: Run, result: StepResult) -> None:
        lap = run.phases.lap(step=run.position.step)
        tokens, self._tokens = run.position.tokens - self._tokens, run.position.tokens
        metrics = {
            "train/loss": result.loss,
            "train/lr": run.lr(run.position.step - 1),
            "train/grad_norm": result.grad_norm,
            "train/tokens": float(run.position.tokens),
            **self._speed.metrics(lap, tokens=tokens),
            **device_memory(run.stepper.device),
            **{f"train/{name}": value for name, value in result.metrics.items()},
        }
        if self._ledger is not None:
            self._ledger.spend(run.position.step, buckets_of(lap), flush=run.saves(result))
            metrics["perf/goodput"] = self._ledger.goodput.share
        stage, cuda = run.spec.engine.zero_stage, run.stepper.device.type == "cuda"
        own = own_seconds(lap, cuda=cuda, zero_stage=stage)
        self._own += [] if own is None else [own]
        if run.due(run.spec.track.stragglers.every):
            metrics |= self._compare(run)
        run.log(metrics)

    def finished(self, run: Run) -> None:
        # A run that is stopped for a lost machine has not ended: what follows is recovery.
        self._ended = run.last or run.stop_file.exists()

    def close(self) -> None:
        """The last to be closed: what the other callbacks still waited for is counted."""
        if self._ledger is not None:
            now = self._phases.now
            self._ledger.spend(now.step, buckets_of(self._phases.lap(step=now.step)))
            self._ledger.close(ended=self._ended)

    def _compare(self, run: Run) -> dict[str, float]:
        """The ranks' own work and memory, side by side; the largest of each is logged."""
        state = host_state()
        mine = [statistics.fmean(self._own) if self._own else 0.0, *state.values()]
        self._own.clear()
        with run.phases("reduce"):
            every = gather(mine, run.stepper.device)
        columns = list(zip(*every, strict=True))
        most = {name: max(column) for name, column in zip(state, columns[1:], strict=True)}
        metrics = {name: value for name, value in most.items() if not math.isnan(value)}
        if run.tracker is not None and any(columns[0]):
            run.tracker.ranks(columns[0])
        slowest = slowest_of(columns[0])
        if slowest is not None:
            metrics["perf/slowest_rank"] = float(slowest.rank)
            metrics["perf/slowest_ratio"] = slowest.ratio
        warning = self._stragglers.judge(slowest)
        if warning is not None:
            run.note(f"warning: {warning}")
        return metrics


def _speed_of(run: Run) -> Speed:
    peak = _peak(run) if run.tracker is not None else None
    flops = None if peak is None else flops_per_token(run.spec.model, run.spec.data.seq_len)
    return Speed(devices=dist.get_world_size(), flops=flops, peak=peak)


def _peak(run: Run) -> float | None:
    """What one device can do at the run's precision; None if that is not known."""
    given = run.spec.track.peak_tflops
    if given is not None:
        return given
    if run.stepper.device.type != "cuda" or run.record.precision == "fp32":
        return None
    return peak_tflops(torch.cuda.get_device_name(run.stepper.device))
