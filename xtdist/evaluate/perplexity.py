"""Exact validation loss of a model on a whole split: nats per token, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from xtdist.config import FiniteFloat, NonNegativeInt, configclass, derive_seed
from xtdist.data import TokenDataset
from xtdist.data.config import Documents
from xtdist.data.windows import Windows, make_windows
from xtdist.objective import AutoregressiveWrapper, Objective


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
    documents: Documents = "joined",
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """Score every token of ``data`` that is a target, in windows of ``seq_len`` that do not overlap
    (a token sees only its own window), in batches of about 16k tokens.

    For a non-autoregressive objective this is one draw of its upper bound.
    ``documents``: as in ``data.documents`` of a run. ``joined`` leaves out the first token alone;
    else a document's first token, which nothing precedes, is no target of next-token prediction.
    ``progress`` is told how many tokens are done.
    """
    device = next(objective.parameters()).device
    objective.eval()
    nats, tokens, done = 0.0, 0.0, 0
    windows = make_windows(data, seq_len, documents)
    for rows in _batches(data, windows, mode=documents, size=max(1, 16384 // seq_len)):
        prepared = objective.prepare(
            torch.from_numpy(rows.tokens.astype(np.int64)),
            seed=derive_seed(seed, "evaluate"),
            sample_ids=torch.from_numpy(rows.ids),
            documents=None if rows.documents is None else torch.from_numpy(rows.documents),
        )
        out = objective.losses(prepared.to(device))
        nats, tokens = nats + out.sum.double().item(), tokens + out.weight.double().item()
        done += rows.tokens.shape[0] * (rows.tokens.shape[1] - 1)
        if progress is not None:
            progress(min(done, data.total_tokens - 1))  # packed windows also hold padding
    text_bytes = data.text_bytes
    if documents != "joined" and isinstance(objective, AutoregressiveWrapper):
        # Bits per byte divide by the text that the targets spell: without the first tokens.
        text_bytes -= first_token_bytes(data)
    return Score(nats=nats, tokens=round(tokens), text_bytes=text_bytes)


def first_token_bytes(data: TokenDataset) -> int:
    """Bytes of text that the first tokens of all documents of the split spell."""
    starts, _ = data.document_bounds(np.arange(data.num_documents, dtype=np.int64))
    firsts = np.empty((len(starts), 1), data.manifest.dtype)
    data.gather(starts, firsts)
    ids, counts = np.unique(firsts, return_counts=True)
    lengths = [len(data.tokenizer.token_bytes(i)) for i in ids.tolist()]
    return int(np.dot(lengths, counts))


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Windows (r, n + 1) with their numbers and, unless joined, the documents in them."""

    ids: np.ndarray
    tokens: np.ndarray
    documents: np.ndarray | None


def _batches(
    data: TokenDataset, windows: Windows, *, mode: Documents, size: int
) -> Iterator[_Rows]:
    """Whole windows in batches of ``size``; then, where windows follow each other in the split, the
    rest of it as one shorter window."""
    width, marks = windows.seq_len + 1, mode != "joined"
    for start in range(0, windows.count, size):
        ids = np.arange(start, min(start + size, windows.count), dtype=np.int64)
        tokens = np.empty((len(ids), width), data.manifest.dtype)
        documents = np.empty(tokens.shape, np.int32) if marks else None
        windows.fill(ids, tokens, documents)
        yield _Rows(ids=ids, tokens=tokens, documents=documents)
    first = windows.count * windows.seq_len
    if mode == "packed" or data.total_tokens - first <= 1:
        return
    rest = np.arange(first, data.total_tokens, dtype=np.int64)
    numbers = data.document_at(rest) if marks else None
    yield _Rows(
        ids=np.array([windows.count], dtype=np.int64),
        tokens=data.read(first, data.total_tokens)[None],
        documents=None if numbers is None else (numbers - numbers[0]).astype(np.int32)[None],
    )
