"""Loss spikes, updates that fp16 skipped, and what the run did about itself so far."""

from __future__ import annotations

import torch.distributed as dist

from xtdist.train.callbacks.base import Callback
from xtdist.train.history import history_together
from xtdist.train.run import Run
from xtdist.train.spec.stability import SpikeRollback
from xtdist.train.stability.interventions import Intervention, append
from xtdist.train.stability.rollback import Rollback, Undo
from xtdist.train.stability.spikes import Spikes
from xtdist.train.step import NonFiniteLossError, StepResult


class Stability(Callback):
    """Before anything of a spiked step is saved."""

    def __init__(self) -> None:
        self._skipped = 0

    def started(self, run: Run) -> None:
        self._skipped = int(run.stepper.engine.skipped_steps)
        rows = [row for row in run.interventions.rows if row.what != "stop"]
        if rows:
            left_out = sum(stop - first for first, stop in run.interventions.skip)
            run.log(
                {
                    "stability/rollbacks": float(len(rows)),
                    "stability/data_steps_left_out": float(left_out),
                    "stability/lr_factor": run.interventions.lr_factor(run.position.step),
                }
            )

    def stepped(self, run: Run, result: StepResult) -> None:
        skipped = int(run.stepper.engine.skipped_steps)
        if skipped != self._skipped:
            self._skipped = skipped
            run.log({"stability/fp16_skipped_steps": float(skipped)})


class SpikeWatch(Callback):
    """Goes back when the loss jumps; see ``SpikeRollback``. The loss is the same on all ranks, so
    they decide the same. After a restart the window is read from the run's own metrics."""

    def __init__(self, spec: SpikeRollback) -> None:
        self._spec = spec
        self._watched: dict[str, Spikes] = {}
        self._in_a_row = 0

    def started(self, run: Run) -> None:
        spec = self._spec
        names = [f"train/{name}" for name in spec.watch]
        past = history_together(
            run.folder, names, last=spec.window + spec.lasting, until=run.position.step
        )
        self._watched = {name: Spikes(window=spec.window, sigmas=spec.sigmas) for name in names}
        for values in zip(*(past[name] for name in names), strict=True):
            self._see(dict(zip(names, values, strict=True)))

    def stepped(self, run: Run, result: StepResult) -> None:
        self._see({"train/loss": result.loss, "train/grad_norm": result.grad_norm})
        if self._in_a_row < self._spec.lasting:
            return
        last = run.position.step - 1
        first = last - self._in_a_row + 1
        done = run.interventions.since_stop("spike")
        row = Intervention(
            what="skip" if len(done) < self._spec.most else "stop",
            why="spike",
            step=first,
            data_step=run.data.order.data_step(first),
            text=f"the loss has a spike from step {first} on ({result.loss:.4g} at step {last})",
            lr_factor=self._spec.lr_factor,
        )
        if row.what == "skip":
            raise Rollback(
                Undo(
                    row=row,
                    last=last,
                    back_steps=self._spec.back_steps,
                    skip_steps=self._spec.skip_steps,
                    data=run.data,
                )
            )
        if dist.get_rank() == 0:
            append(run.folder, row)
        raise NonFiniteLossError(
            f"{row.text}, and the run has gone back for spikes {len(done)} times "
            "(stability.spike.most). Lower optim.lr, look at the data, or raise it; the same "
            "command then goes on from the newest checkpoint"
        )

    def _see(self, values: dict[str, float]) -> None:
        spikes = [watch.add(values[name]) for name, watch in self._watched.items()]
        self._in_a_row = self._in_a_row + 1 if any(spikes) else 0
