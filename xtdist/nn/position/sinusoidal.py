"""Sinusoidal absolute positions, https://arxiv.org/abs/1706.03762."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn


class SinusoidalPosition(nn.Module):
    """Position ↦ scale · (sin(pos · f), cos(pos · f)), f = theta^(−i/(dim/2)), with one learned
    scale. Computed in fp32 from integer positions at every call."""

    def __init__(self, dim: int, *, theta: float) -> None:
        super().__init__()
        self.dim, self.theta = dim, theta
        self.scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start at dim^-1/2; nothing is drawn."""
        self.scale.fill_(self.dim**-0.5)

    def forward(self, pos: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        half = self.dim // 2
        channel = torch.arange(half, device=pos.device, dtype=torch.float32)
        frequency = self.theta ** -(channel / half)
        angle = rearrange(pos, "b n -> b n 1").to(torch.float32) * frequency
        waves = torch.cat((angle.sin(), angle.cos()), dim=-1)
        return (waves * self.scale.float()).to(self.scale.dtype)
