"""Which windows a validation during training looks at, and what it tells."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from xtdist.config import derive_seed
from xtdist.data import StepBatch, TokenDataset, View, rank_slice
from xtdist.data.windows import Windows
from xtdist.objective import Objective
from xtdist.train.spec import RunSpec

MAIN = "eval/valid/loss"  # of every validation


class Sum(NamedTuple):
    """Losses (nats) over ``weight`` targets, which stand for ``text_bytes`` of text."""

    nats: float
    weight: float
    text_bytes: float


@torch.no_grad()
def score(
    trained: Objective, view: View, spec: RunSpec, *, device: str, prefix: str = ""
) -> dict[str, float]:
    """The metrics of a validation by this process alone, of a model in eval mode: what the ranks
    of a run find together."""
    found = {}
    for name, data in view.datasets.items():
        total = torch.zeros(2, dtype=torch.float64)
        for batch in validation_batches(view, name, spec, rank=0, world=1):
            prepared = trained.prepare(
                batch.tokens,
                seed=derive_seed(spec.seed, "validation", 0),
                sample_ids=torch.from_numpy(batch.sample_ids),
                documents=batch.documents,
            )
            size = spec.split(1, rows=batch.step_rows).micro_batch
            for start in range(0, len(prepared), size):
                out = trained.losses(prepared[start : start + size].to(torch.device(device)))
                total += torch.stack([out.sum.double(), out.weight.double()]).cpu()
        nats, weight = total.tolist()
        found[name] = Sum(nats, weight, text_bytes_of(data, weight))
    return metrics_of(found, prefix=prefix)


def validation_batches(
    view: View, name: str, spec: RunSpec, *, rank: int, world: int
) -> Iterator[StepBatch]:
    """``loop.valid_windows`` windows of the corpus ``name``, evenly spread over its split and the
    same at every call, cut into global batches and by rank. Every rank yields the same number of
    batches."""
    number, size = view.names.index(name), spec.global_batch
    windows, last = view.windows[number], view.windows[number].count - 1
    chosen = np.linspace(0, last, min(spec.loop.valid_windows, windows.count)).astype(np.int64)
    ids = np.unique(chosen)
    part, parts = spec.data_place(rank, world)
    for start in range(0, len(ids), size):
        whole = ids[start : start + size]
        unit = spec.split(world, rows=len(whole)).unit
        mine = whole[rank_slice(len(whole), part, parts, unit=unit)]
        tokens, documents = _rows(
            windows, view.datasets[name], mine, marks=spec.data.documents != "joined"
        )
        yield StepBatch(
            step=0,
            data_step=0,
            step_rows=len(whole),
            tokens=tokens,
            documents=documents,
            sample_ids=mine,
            corpus=np.full(len(mine), number, np.int64),
            windows=mine,
            wait_s=0.0,
        )


def _rows(
    windows: Windows, data: TokenDataset, ids: np.ndarray, *, marks: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    tokens = np.empty((len(ids), windows.seq_len + 1), data.manifest.dtype)
    documents = np.empty(tokens.shape, np.int32) if marks else None
    windows.fill(ids, tokens, documents)
    wide = torch.from_numpy(tokens.astype(np.int64))
    return wide, None if documents is None else torch.from_numpy(documents)


def text_bytes_of(data: TokenDataset, weight: float) -> float:
    """The text that ``weight`` targets stand for: their share of the split's.

    All of a split's tokens count here, though with documents kept apart the first of each is no
    target: it is taken to cost what the others cost on average. Leaving only its cost out and not
    its bytes would make every model look better the shorter the documents are.
    """
    return weight * data.text_bytes / data.total_tokens


def metrics_of(found: Mapping[str, Sum], *, prefix: str = "") -> dict[str, float]:
    """The metrics of one validation: over all windows and, of a mixture, for each corpus."""
    rows = {"valid": Sum(*(sum(column) for column in zip(*found.values(), strict=True)))}
    if len(found) > 1:
        rows |= found
    metrics = {}
    for name, row in rows.items():
        metrics[f"eval/{name}/{prefix}loss"] = row.nats / max(row.weight, 1e-12)
        bits = row.nats / math.log(2) / max(row.text_bytes, 1e-12)
        metrics[f"eval/{name}/{prefix}bits_per_byte"] = bits
    return metrics
