"""How matrices lie in memory."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from xtdist.nn.attention.projection import JointProjection
from xtdist.nn.embedding import Head
from xtdist.nn.linear import Linear

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def by_columns(model: M) -> M:
    """``model`` with its matrices stored column by column, changed in place and given back: the
    same parameters with the same values, which a CPU multiplies with few vectors faster: with one,
    by 5%, with four or eight, by 30%. For decoding; a trainer wants them contiguous, and so does
    a file of safetensors."""
    for module in model.modules():
        if type(module) in (Linear, JointProjection, Head):
            weight = module.weight
            if isinstance(weight, nn.Parameter):  # no other kind of matrix, like int8
                weight.data = weight.data.t().contiguous().t()
    return model
