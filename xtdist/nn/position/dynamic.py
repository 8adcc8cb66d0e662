"""Dynamic position bias: a network of the distance (CrossFormer style, Swin v2's continuous
bias), https://arxiv.org/abs/2111.09883."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.nn.linear import Linear


class _Wide(Linear):
    """W x + b in fp32, whatever the type of the weights."""

    def forward(
        self, x: Float[Tensor, "... d"], before: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "... e"]:
        x = x if before is None else before(x)
        return F.linear(x, self.weight.float(), self.bias.float())


class _Norm(nn.LayerNorm):
    """LayerNorm in fp32, whatever the type of the gain."""

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start as the identity; nothing is drawn."""
        super().reset_parameters()

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x, x.shape[-1:], self.weight.float(), bias, self.eps)


class _Hidden(nn.Module):
    """silu(linear(x)), optionally normalized in between."""

    def __init__(self, linear: _Wide, norm: _Norm | None) -> None:
        super().__init__()
        self.linear, self.norm = linear, norm

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... e"]:
        x = self.linear(x)
        return F.silu(x if self.norm is None else self.norm(x))


class DynamicBias(nn.Module):
    """mlp(distance), or mlp(sign(distance) · ln(|distance| + 1)): one output for each head.

    All arithmetic is fp32 whatever the type of the weights: bf16 can't tell distance 256 from 257.
    """

    def __init__(
        self, heads: int, *, hidden: int, depth: int, log_distance: bool, norm: bool
    ) -> None:
        super().__init__()
        self.log_distance = log_distance
        self.hidden = nn.ModuleList(
            _Hidden(
                _Wide(hidden if layer else 1, hidden, bias=True),
                _Norm(hidden, bias=layer > 0) if norm else None,
            )
            for layer in range(depth)
        )
        self.to_bias = _Wide(hidden, heads, bias=True, init_gain=0.02)  # inputs are in the 1000s

    def by_distance(self, distance: Int[Tensor, "..."]) -> Float[Tensor, "... h"]:
        """The bias for ``distance`` = query position − key position."""
        x = rearrange(distance, "... -> ... 1").to(torch.float32)
        if self.log_distance:
            x = x.sign() * x.abs().log1p()
        with torch.autocast(distance.device.type, enabled=False):
            for layer in self.hidden:
                x = layer(x)
            bias: Tensor = self.to_bias(x)
        return bias

    def forward(
        self, q_pos: Int[Tensor, "b i"], k_pos: Int[Tensor, "b j"], *, reach: int | None = None
    ) -> Float[Tensor, "b h i j"]:
        """The bias of every pair, fp32. With ``reach`` the network runs on 2 reach + 1 distances
        instead of on i · j of them."""
        distance = rearrange(q_pos, "b i -> b i 1") - rearrange(k_pos, "b j -> b 1 j")
        if reach is None or not distance.numel() or 2 * reach >= distance[0].numel():
            bias = self.by_distance(distance)
        else:
            every = torch.arange(-reach, reach + 1, device=distance.device)
            bias = F.embedding(distance + reach, self.by_distance(every))
        return rearrange(bias, "b i j h -> b h i j")
