"""Tensors that a run keeps beside the optimizer's, one per flat: an average of the weights …

``run.extras[key]`` is a list with one tensor per :func:`flats`, each of the flat's length; they are
saved with every checkpoint under ``key``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from xtdist.checkpoint import Commit
from xtdist.train.state.flats import flats
from xtdist.train.state.restore import state_files
from xtdist.train.state.shards import EXTRA, MASTER, Shards


@torch.no_grad()
def load_extra(engine: Any, commit: Commit, key: str, tensors: Sequence[Tensor]) -> bool:
    """Fill ``tensors`` (one per flat) with what the checkpoint holds under ``key``; False, and
    nothing is changed, if it holds none. The files are those that ``restore`` has checked."""
    with Shards.open(state_files(commit)) as shards:
        key = EXTRA + key
        if not any(key in shards.keys(name) for name in shards.shapes):
            return False
        for flat, tensor in zip(flats(engine), tensors, strict=True):
            for piece in flat.pieces:
                for at, part in shards.read(piece, key):
                    tensor[at : at + part.numel()].copy_(part)
    return True


@torch.no_grad()
def gather(engine: Any, tensors: Sequence[Tensor] | None = None) -> dict[str, Tensor] | None:
    """Whole parameters on rank 0 (None elsewhere), by their names in the module, in host memory.
    All ranks call it together; they exchange one parameter at a time.

    Args:
        tensors: one per flat, of its length; None: the masters.
    """
    parts: dict[str, tuple[int, Tensor]] = {}
    for i, flat in enumerate(flats(engine)):
        with flat.swapped():
            source = flat.tensors()[MASTER] if tensors is None else tensors[i]
            for piece in flat.own():
                values = source[piece.at : piece.at + piece.numel]
                parts[piece.name] = (piece.start, values.to(engine.device, copy=True))
    found: dict[str, Tensor] = {}
    for name, p in engine.module.named_parameters():
        if not p.requires_grad:
            continue
        shape = tuple(getattr(p, "ds_shape", p.shape))
        whole = torch.zeros(math.prod(shape), device=engine.device)
        if name in parts:
            start, values = parts[name]
            whole[start : start + values.numel()] = values
        dist.reduce(whole, dst=0)
        if dist.get_rank() == 0:
            found[name] = whole.view(shape).cpu()
    return found if dist.get_rank() == 0 else None
