"""The ranks that share the sequences of a run, and when their attentions work together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import nn

from xtdist.nn.attention.exchange import SequenceGroup
from xtdist.nn.attention.module import Attention


def sequence_group(count: int) -> SequenceGroup | None:
    """The ``count`` neighbouring ranks among which this one is; None for 1. All ranks of the world
    call it together."""
    if count == 1:
        return None
    own, groups = dist.new_subgroups(group_size=count)
    del groups
    return SequenceGroup(own, dist.get_rank() % count, count)


@contextmanager
def sliced(module: nn.Module, group: SequenceGroup | None) -> Iterator[None]:
    """Within, the tokens that ``module`` is given are slices, and its attentions read whole
    sequences. A backward pass belongs within too. The module is as it was afterwards: a copy, a
    checkpoint or a sample of it knows nothing of any group."""
    attentions = [m for m in module.modules() if isinstance(m, Attention)] if group else []
    for attention in attentions:
        attention.sequence = group
    try:
        yield
    finally:
        for attention in attentions:
            del attention.sequence
