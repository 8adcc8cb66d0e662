"""Polar coordinate position embedding (PoPE), https://arxiv.org/abs/2509.10534."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn


class PolarTable(NamedTuple):
    """Cosine and sine of every position's angles in fp32, one for each channel."""

    cos: Float[Tensor, "b 1 n d"]
    sin: Float[Tensor, "b 1 n d"]


class PolarPosition(nn.Module):
    """softplus of a channel is a magnitude, the position its angle: twice the channels, and the
    score of two vectors is Σ softplus(q) softplus(k) cos(angle_q − angle_k − bias).

    ``bias`` is a learned angle for each channel of each key/value head, kept in [−2π, 0]. Keys can
    be stored after their turn. Scores are scaled for the channels before the doubling.
    """

    def __init__(self, dim_head: int, *, kv_heads: int, theta: float, uniform_bias: bool) -> None:
        super().__init__()
        self.dim_head, self.theta, self.uniform_bias = dim_head, theta, uniform_bias
        self.bias = nn.Parameter(torch.empty(kv_heads, 1, dim_head))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start without an angle, or anywhere on the circle."""
        self.bias.zero_()
        if self.uniform_bias:
            self.bias.uniform_(-2 * math.pi, 0, generator=generator)

    def table(self, pos: Int[Tensor, "b n"]) -> PolarTable:
        """The angles pos · theta^(−i/d), i < d, in fp32; compute them once for all layers."""
        channel = torch.arange(self.dim_head, device=pos.device, dtype=torch.float32)
        frequency = 1.0 / self.theta ** (channel / self.dim_head)
        angle = rearrange(pos, "b n -> b 1 n 1").to(torch.float32) * frequency
        return PolarTable(angle.cos(), angle.sin())

    def queries(self, q: Float[Tensor, "b h n d"], table: PolarTable) -> Float[Tensor, "b h n e"]:
        """Queries at the positions of ``table``; e = 2 d. fp32 inside, ``q``'s type outside."""
        return _place(q, table)

    def forward(self, k: Float[Tensor, "b hk n d"], table: PolarTable) -> Float[Tensor, "b hk n e"]:
        """Keys at the positions of ``table``, turned by the learned bias as well."""
        bias = self.bias.float().clamp(-2 * math.pi, 0)
        cos = table.cos * bias.cos() - table.sin * bias.sin()
        sin = table.sin * bias.cos() + table.cos * bias.sin()
        return _place(k, PolarTable(cos, sin))


def _place(x: Float[Tensor, "b h n d"], table: PolarTable) -> Float[Tensor, "b h n e"]:
    magnitude = F.softplus(x.float())
    return torch.cat((magnitude * table.cos, magnitude * table.sin), dim=-1).to(x.dtype)
