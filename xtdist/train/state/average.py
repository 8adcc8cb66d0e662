"""Averaged weights in place of the trained ones, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from xtdist.train.state.flats import flats, lower
from xtdist.train.state.shards import MASTER

AVERAGE = "ema"
"""The key of the averages in ``run.extras``."""


@contextmanager
def averaged(engine: Any, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Within it, the module computes with ``tensors`` (one per flat) as its masters. Afterwards
    everything is as before, to the bit. All ranks enter and leave together.

    After an error nothing is put back: the other ranks may be gone, and so is the run.
    """
    _exchange(engine, tensors)
    yield
    _exchange(engine, tensors)


@torch.no_grad()
def _exchange(engine: Any, tensors: Sequence[Tensor]) -> None:
    for flat, tensor in zip(flats(engine), tensors, strict=True):
        with flat.swapped():
            masters = flat.tensors()[MASTER].clone()
            flat.write(MASTER, tensor)
            tensor.copy_(masters)
    lower(engine)
