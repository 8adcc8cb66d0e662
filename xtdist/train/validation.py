"""Which windows a validation during training looks at."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist

from xtdist.data import StepBatch, TokenDataset, rank_slice
from xtdist.train.spec import RunSpec


def validation_batches(data: TokenDataset, spec: RunSpec) -> Iterator[StepBatch]:
    """``loop.valid_windows`` windows, evenly spread over the split and the same at every call, cut
    into global batches and by rank. Every rank yields the same number of batches."""
    seq_len, size = spec.data.seq_len, spec.global_batch
    total = data.num_windows(seq_len)
    ids = np.unique(np.linspace(0, total - 1, min(spec.loop.valid_windows, total)).astype(np.int64))
    rank, world = dist.get_rank(), dist.get_world_size()
    for start in range(0, len(ids), size):
        whole = ids[start : start + size]
        mine = whole[rank_slice(len(whole), rank, world)]
        tokens = data.windows(mine, seq_len)
        yield StepBatch(
            step=0,
            tokens=torch.from_numpy(tokens),
            sample_ids=mine,
            corpus=np.zeros_like(mine),
            windows=mine,
            wait_s=0.0,
        )
