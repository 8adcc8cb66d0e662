"""Skips from the first half of the stack to the second (U-ViT, 2209.12152)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.nn.linear import Linear


class UNetSkip(nn.Module):
    """W [skip, x]: joins an earlier layer's input to the current one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.combine = Linear(2 * dim, dim)

    def forward(
        self, x: Float[Tensor, "b *s n d"], skip: Float[Tensor, "b *s n d"]
    ) -> Float[Tensor, "b *s n d"]:
        return self.combine(torch.cat((skip, x), dim=-1))
