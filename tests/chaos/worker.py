"""What a worker runs in a chaos run: the real one, slowed down so that faults can hit it, held at
the step in ``<run>/chaos/until`` so that it can't end before they came, and with a loss that is nan
once whenever ``<run>/chaos/nan`` asks for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

STEP_S = 0.05
ASKED, DONE, UNTIL = "nan", "nan-done", "until"


def chaos_worker(payload: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    from xtdist.objective import AutoregressiveWrapper, LossOutput
    from xtdist.train.loop import train_worker
    from xtdist.train.step import Stepper

    folder = Path(payload["folder"]) / "chaos"
    real_losses, real_step = AutoregressiveWrapper.losses, Stepper.step

    def step(self: Stepper, batch: Any, **keywords: Any) -> Any:
        time.sleep(STEP_S)
        while (folder / UNTIL).exists() and batch.step >= int((folder / UNTIL).read_text()):
            time.sleep(STEP_S)
        return real_step(self, batch, **keywords)

    def losses(self: AutoregressiveWrapper, prepared: Any) -> LossOutput:
        out = real_losses(self, prepared)
        last = dist.get_rank() == dist.get_world_size() - 1
        if not (last and self.training and (folder / ASKED).exists()):
            return out
        (folder / ASKED).rename(folder / DONE)
        return LossOutput(out.sum * torch.nan, out.weight)

    with (
        patch.object(Stepper, "step", step),
        patch.object(AutoregressiveWrapper, "losses", losses),
    ):
        train_worker(payload)
