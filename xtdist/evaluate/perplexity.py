"""Exact validation loss of a model on a whole split: nats per token, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from xtdist.config import FiniteFloat, NonNegativeInt, configclass, derive_seed
from xtdist.data import TokenDataset
from xtdist.objective import Objective


@configclass
class Score:
    """``nats``: summed over ``tokens`` targets, which spell ``text_bytes`` bytes of text."""

    nats: FiniteFloat
    tokens: NonNegativeInt
    text_bytes: NonNegativeInt

    @property
    def loss(self) -> float:
        """Mean nats per token."""
        return self.nats / max(self.tokens, 1)

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700))

    @property
    def bits_per_byte(self) -> float:
        """Independent of the tokenizer: what a compressor with this model would need."""
        return self.nats / math.log(2) / max(self.text_bytes, 1)


@torch.no_grad()
def evaluate_model(
    objective: Objective,
    data: TokenDataset,
    *,
    seq_len: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """Score every token of ``data`` but the first, in windows of ``seq_len`` that do not overlap
    (a token sees only its own window), in batches of about 16k tokens.

    For a non-autoregressive objective this is one draw of its upper bound.
    ``progress`` is told how many tokens are done.
    """
    device = next(objective.parameters()).device
    objective.eval()
    nats, tokens, done = 0.0, 0.0, 0
    for ids, rows in _batches(data, seq_len, rows_per_batch=max(1, 16384 // seq_len)):
        prepared = objective.prepare(
            torch.from_numpy(rows.astype(np.int64)),
            seed=derive_seed(seed, "evaluate"),
            sample_ids=torch.from_numpy(ids),
        )
        out = objective.losses(prepared.to(device))
        nats, tokens = nats + out.sum.double().item(), tokens + out.weight.double().item()
        done += rows.shape[0] * (rows.shape[1] - 1)
        if progress is not None:
            progress(done)
    return Score(nats=nats, tokens=round(tokens), text_bytes=data.text_bytes)


def _batches(
    data: TokenDataset, seq_len: int, *, rows_per_batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whole windows in batches; then the rest of the split as one shorter window."""
    whole = data.num_windows(seq_len)
    for start in range(0, whole, rows_per_batch):
        ids = np.arange(start, min(start + rows_per_batch, whole), dtype=np.int64)
        yield ids, data.windows(ids, seq_len)
    if data.total_tokens - whole * seq_len > 1:
        rest = data.read(whole * seq_len, data.total_tokens)
        yield np.array([whole], dtype=np.int64), rest[None]
