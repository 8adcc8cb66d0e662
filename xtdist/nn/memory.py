"""Learned tokens beside those of the sequence: memories and class tokens."""

from __future__ import annotations

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.nn.linear import scaled_normal_


class LearnedTokens(nn.Module):
    """So many vectors, the same for each sequence (2006.11527)."""

    is_embedding = True

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the vectors again."""
        scaled_normal_(self.weight, self.weight.shape[1], generator)

    def forward(self, batch: int) -> Float[Tensor, "b m d"]:
        return repeat(self.weight, "m d -> b m d", b=batch)
