"""Relative position bias from a learned basis of distance curves."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.nn.linear import Linear


class RelativeProjection(nn.Module):
    """Each query draws its own curve over distances, linear(x) · bank, and adds it to the scores of
    the keys 0 … ``max_distance`` − 1 before it; other keys get 0. Cached = uncached: a query needs
    its own row of the layer's input only."""

    def __init__(self, dim: int, *, heads: int, basis: int, max_distance: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_weights = Linear(dim, heads * basis, bias=True)
        self.bank = nn.Parameter(torch.empty(basis, max_distance))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw small curves."""
        nn.init.normal_(self.bank, std=0.02, generator=generator)

    def forward(
        self,
        x: Float[Tensor, "b i d"],
        q_pos: Int[Tensor, "b i"],
        k_pos: Int[Tensor, "b j"],
    ) -> Float[Tensor, "b h i j"]:
        """The bias of every pair, fp32. ``x``: the layer's input at the queries."""
        last = self.bank.shape[1] - 1
        weights = rearrange(self.to_weights(x).float(), "b i (h r) -> b h i r", h=self.heads)
        curves = einsum(weights, self.bank.float(), "b h i r, r t -> b h i t")
        distance = rearrange(q_pos, "b i -> b 1 i 1") - rearrange(k_pos, "b j -> b 1 1 j")
        inside = (distance >= 0) & (distance <= last)
        index = distance.clamp(0, last).expand(*curves.shape[:3], -1)
        return curves.gather(-1, index).masked_fill(~inside, 0.0)
