"""The DeepSpeed engine of a run."""

from __future__ import annotations

from typing import Literal

from xtdist.config import configclass

Precision = Literal["fp32", "bf16", "fp16"]


@configclass
class EngineSpec:
    """The DeepSpeed engine. Stage 0 replicates everything, 1 shards the optimizer, 2 also the
    gradients, 3 also the parameters (1910.02054). ``auto`` precision is bf16 where the hardware
    multiplies it (a GPU since Ampere, a CPU with AMX), else fp32."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["auto"] | Precision = "auto"
