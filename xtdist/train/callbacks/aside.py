"""Validations and samples by a task beside the workers, of the checkpoints that are committed."""

from __future__ import annotations

import contextlib
import time

import torch
import torch.distributed as dist

from xtdist.checkpoint.naming import step_of
from xtdist.config import ConfigError
from xtdist.track import read_series
from xtdist.train.aside import AsideJob, Task, in_a_cluster
from xtdist.train.callbacks.base import Callback
from xtdist.train.run import Run
from xtdist.train.samples import append_samples
from xtdist.train.spec.aside import AsideSpec
from xtdist.train.step import StepResult
from xtdist.train.validation import MAIN

POLL_S = 0.2


class Aside(Callback):
    """Rank 0 starts one task at a time, on the newest checkpoint, and logs what it found at that
    checkpoint's step. A task that fails is a warning; the next checkpoint then stands for it.

    Raises:
        ConfigError: this process belongs to no Ray cluster.
    """

    phase = "evaluate"

    def __init__(self, spec: AsideSpec) -> None:
        if not in_a_cluster():
            raise ConfigError(
                "loop.aside: needs Ray, to which these processes do not belong; leave it out"
            )
        self._spec = spec
        self._task: Task | None = None
        self._wanted: str | None = None
        self._seen: str | None = None
        self._scored = self._misses = 0

    def started(self, run: Run) -> None:
        """Make up for the validation that the attempt before had no time for."""
        if dist.get_rank() != 0:
            return
        scored = read_series(run.folder).get(MAIN)
        steps = [s for s in scored.steps if s <= run.position.step] if scored else []
        self._scored, self._seen = max(steps, default=0), run.committed
        if run.committed is not None and self._due(run, run.committed_step):
            self._wanted = run.committed
        self._go_on(run)

    def stepped(self, run: Run, result: StepResult) -> None:
        if dist.get_rank() == 0:
            self._go_on(run)

    def finished(self, run: Run) -> None:
        """Wait for the last one where the run ends; where it is only asked to stop, the next start
        makes up for it."""
        if not (run.last or run.ended):
            return
        while True:
            with run.phases(self.phase):  # each a sign of life for the watchdog
                busy = torch.zeros(1, device=run.stepper.device)
                if dist.get_rank() == 0:
                    self._go_on(run)
                    busy += self._task is not None and not run.stop_file.exists()
                dist.broadcast(busy, src=0)
                if not busy:
                    break
                time.sleep(POLL_S)
        if dist.get_rank() == 0:
            self._prune(run)

    def close(self) -> None:
        if self._task is not None:
            with contextlib.suppress(Exception):
                self._task.cancel()

    def _go_on(self, run: Run) -> None:
        """See what is new: a checkpoint, the end of a task; start the next one."""
        if run.committed != self._seen:
            self._wanted = self._seen = run.committed
        self._collect(run)
        if self._task is None and self._wanted is not None:
            self._start(run, self._wanted)
            self._wanted = None
        self._hold(run)

    def _collect(self, run: Run) -> None:
        if self._task is None:
            return
        job = self._task.job
        try:
            found = self._task.findings()
        except Exception as e:
            self.close()
            self._missed(run, job, e)
        else:
            if found is None:
                return
            run.log(found.metrics, step=job.step)
            append_samples(run.folder, run.spec, found.texts, step=job.step)
            self._scored = job.step if job.validate else self._scored
        self._task = None

    def _start(self, run: Run, name: str) -> None:
        step = step_of(name)
        job = AsideJob(
            spec=run.spec,
            place=run.spec.checkpoint.place(run.folder),
            name=name,
            step=step,
            validate=self._due(run, step),
            gpu=self._spec.gpus > 0,
        )
        if not (job.validate or run.spec.loop.sample_prompts):
            return
        try:
            self._task = Task(job, self._spec)
        except Exception as e:  # the cluster does not answer
            self._missed(run, job, e)

    def _missed(self, run: Run, job: AsideJob, error: Exception) -> None:
        self._misses += 1
        run.log({"aside/misses": float(self._misses)})
        what = "validation" if job.validate else "samples"
        cause = getattr(error, "cause", None) or error
        text = " ".join(str(cause).split())[:300] or type(cause).__name__
        run.note(f"warning: no {what} of the checkpoint of step {job.step}: {text}")

    def _due(self, run: Run, step: int) -> bool:
        """Whether ``valid_every`` steps, or the end, were passed since the last validation; saves
        may come a few steps late."""
        every = run.spec.loop.valid_every
        if not every:
            return False
        at_the_end = step == run.spec.loop.steps and step > self._scored
        return at_the_end or step // every > self._scored // every

    def _hold(self, run: Run) -> None:
        names = (self._task.job.name if self._task else None, self._wanted)
        run.store.held = frozenset(n for n in names if n is not None)

    def _prune(self, run: Run) -> None:
        """What was held when the last save pruned."""
        try:
            run.store.prune(run.spec.checkpoint.retention)
        except Exception as e:  # the store does not answer: no reason to fail a run that is done
            print(f"{run.store.url}: old checkpoints not deleted: {e}", flush=True)
