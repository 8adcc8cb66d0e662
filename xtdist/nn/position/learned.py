"""Learned absolute positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.nn.linear import scaled_normal_


class LearnedPosition(nn.Module):
    """Position ↦ vector, for positions below ``max_seq_len``. ``init_gain`` multiplies the start
    values."""

    is_embedding = True
    init_gain = 1.0

    def __init__(self, max_seq_len: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_seq_len, dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the vectors again."""
        scaled_normal_(self.weight, self.weight.shape[1], generator)
        self.weight.mul_(self.init_gain)

    def forward(self, pos: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        return F.embedding(pos, self.weight)
