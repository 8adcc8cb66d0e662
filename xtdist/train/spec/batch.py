"""How much data a step has, and how it is cut among workers and forward passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xtdist.config import PositiveInt, configclass


@configclass
class BatchSpec:
    """``tokens_per_step``: of all workers together, in one optimizer step.
    ``micro_batch_tokens``: at most, in one forward pass of one worker (memory follows it)."""

    tokens_per_step: PositiveInt = 32768
    micro_batch_tokens: PositiveInt = 8192


@dataclass(frozen=True)
class Split:
    """A step's sequences among the workers; the same numbers on each.

    Attributes:
        share: sequences of one worker, at most.
        micro_batch: sequences in one forward pass of one worker, at most.
        accumulation: forward passes in one step.
    """

    share: int
    micro_batch: int
    accumulation: int


def split_batch(batch: BatchSpec, *, seq_len: int, world: int) -> Split:
    """Cut the ``tokens_per_step`` of ``batch`` for ``world`` workers."""
    share = math.ceil(batch.tokens_per_step // seq_len / world)
    micro_batch = max(1, min(batch.micro_batch_tokens // seq_len, share))
    return Split(share, micro_batch, math.ceil(share / micro_batch))
