"""What follows a loss or gradient that is not finite."""

from __future__ import annotations

from typing import NoReturn

import torch.distributed as dist

from xtdist.train.run import Run
from xtdist.train.stability.interventions import Intervention, What, append
from xtdist.train.stability.rollback import Rollback, Undo
from xtdist.train.step import NonFiniteLossError


def after_non_finite(run: Run, error: NonFiniteLossError) -> NoReturn:
    """Go back and repeat the step, leave its data out, or stop. All ranks decide the same: from
    what the run did so far, which rank 0 told them.

    Raises:
        Rollback: to the newest checkpoint.
        NonFiniteLossError: as often as allowed it has come again.
    """
    step = run.position.step
    data_step = run.data.order.data_step(step)
    what, tried = _decide(run, data_step)
    row = Intervention(
        what=what,
        why="non_finite",
        step=step,
        data_step=data_step,
        text=f"the loss or gradient of step {step} is not finite",
    )
    if what == "stop":
        if dist.get_rank() == 0:
            append(run.folder, row)
        again = f". It was repeated {tried} times and came again" if tried else ""
        raise NonFiniteLossError(f"{error}{again}") from None
    raise Rollback(
        Undo(row=row, last=step, skip_steps=1 if what == "skip" else 0, data=run.data)
    ) from None


def _decide(run: Run, data_step: int) -> tuple[What, int]:
    """What to do, and how often this step of data was tried again by now."""
    policy, past = run.spec.stability.non_finite, run.interventions.since_stop("non_finite")
    tried = sum(row.what == "retry" and row.data_step == data_step for row in past)
    if len(past) >= policy.most:
        return "stop", tried
    if tried < policy.retries:
        return "retry", tried
    return policy.then, tried
