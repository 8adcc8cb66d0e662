"""How much data a step has, and how it is cut among workers and forward passes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from xtdist.config import ConfigError, PositiveInt, configclass
from xtdist.data.config import LaterStep


@configclass
class BatchStage:
    """Steps before ``until_step`` have ``tokens_per_step``."""

    until_step: LaterStep
    tokens_per_step: PositiveInt


@configclass
class SeqLenStage:
    """Steps before ``until_step`` are trained on in rows of ``seq_len`` targets."""

    until_step: LaterStep
    seq_len: PositiveInt


@configclass
class BatchSpec:
    """Steps are counted in data here, as phases and skipped steps are: all but skipped ones.

    Attributes:
        tokens_per_step: of all workers together, in one optimizer step, after the warm-up.
        micro_batch_tokens: at most, in one forward pass of one worker (memory follows it). auto: as
            many as the workers' free memory holds, which may be others after a restart.
        warmup: smaller (or larger) steps at the beginning, by ascending ``until_step``. The samples
            come in the same order, cut into other steps.
        seq_len_warmup: shorter rows at the beginning: each sample of ``data.seq_len`` targets is
            cut into rows that see nothing of each other; tokens in a step stay the same.
    """

    tokens_per_step: PositiveInt = 32768
    micro_batch_tokens: Literal["auto"] | PositiveInt = 8192
    warmup: tuple[BatchStage, ...] = ()
    seq_len_warmup: tuple[SeqLenStage, ...] = ()

    def __post_init__(self) -> None:
        for name in ("warmup", "seq_len_warmup"):
            before = 0
            for i, stage in enumerate(getattr(self, name)):
                if stage.until_step <= before:
                    raise ConfigError(
                        f"{name}.{i}.until_step: got {stage.until_step} after {before}; stages are "
                        "listed by ascending until_step"
                    )
                before = stage.until_step

    def most_rows(self, seq_len: int) -> int:
        """Sequences in a micro-batch at most; of auto, all that there are."""
        if self.micro_batch_tokens == "auto":
            return self.tokens_per_step // seq_len
        return max(1, self.micro_batch_tokens // seq_len)

    def row_len(self, data_step: int, *, seq_len: int) -> int:
        """Targets in a row of a step of data whose samples have ``seq_len``."""
        stages = (stage.seq_len for stage in self.seq_len_warmup if data_step < stage.until_step)
        return next(stages, seq_len)


@dataclass(frozen=True)
class Split:
    """A step's sequences among the workers; the same numbers on each.

    Attributes:
        share: sequences of one worker, at most.
        micro_batch: sequences in one forward pass of one worker, at most.
        accumulation: forward passes in one step.
        unit: each worker gets whole units of so many sequences.
    """

    share: int
    micro_batch: int
    accumulation: int
    unit: int = 1


def split_rows(rows: int, *, most: int, world: int, fixed: bool) -> Split:
    """Cut ``rows`` sequences for ``world`` workers into micro-batches of ``most`` at most.

    fixed: into the same micro-batches for any number of workers, each wholly one worker's.
    """
    if fixed:
        accumulation = math.ceil(math.ceil(rows / most) / world)
        return Split(min(accumulation * most, rows), most, accumulation, unit=most)
    share = math.ceil(rows / world)
    micro_batch = min(most, share)
    return Split(share, micro_batch, math.ceil(share / micro_batch))


def check_batch(batch: BatchSpec, *, seq_len: int) -> None:
    """Refuse sizes that don't fit samples of ``seq_len`` targets.

    Raises:
        ConfigError: naming the key below ``batch``.
    """
    sizes = {f"warmup.{i}.tokens_per_step": s.tokens_per_step for i, s in enumerate(batch.warmup)}
    for key, tokens in {"tokens_per_step": batch.tokens_per_step, **sizes}.items():
        if tokens % seq_len:
            low = max(tokens // seq_len, 1) * seq_len
            raise ConfigError(
                f"{key}: got {tokens}; it must be a multiple of data.seq_len ({seq_len}), {low} "
                "for example"
            )
    for i, stage in enumerate(batch.seq_len_warmup):
        if seq_len % stage.seq_len:
            raise ConfigError(
                f"seq_len_warmup.{i}.seq_len: got {stage.seq_len}; it must divide data.seq_len "
                f"({seq_len})"
            )
