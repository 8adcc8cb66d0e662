"""Several residual streams at the ends of the stack."""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn


class Streams(nn.Module):
    """x ↦ ``streams`` copies of x, told apart by a learned vector each; ``reduce`` sums them."""

    def __init__(self, dim: int, *, streams: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(streams, dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start as plain copies."""
        self.embedding.zero_()

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b s n d"]:
        return rearrange(x, "b n d -> b 1 n d") + rearrange(self.embedding, "s d -> s 1 d")

    @staticmethod
    def reduce(stream: Float[Tensor, "b s n d"]) -> Float[Tensor, "b n d"]:
        """One stream again: the sum."""
        return reduce(stream, "b s n d -> b n d", "sum")
