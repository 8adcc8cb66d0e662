"""Rotary position embedding (RoPE), https://arxiv.org/abs/2104.09864."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


class RotaryTable(NamedTuple):
    """Cosine and sine of every position's angles in fp32; r is half the rotated channels."""

    cos: Float[Tensor, "b 1 n r"]
    sin: Float[Tensor, "b 1 n r"]


def rotary_table(pos: Int[Tensor, "b n"], *, dim: int, theta: float) -> RotaryTable:
    """The angles pos · theta^(−2i/dim), i < dim/2.

    Computed in fp32 from integer positions at every call: there is no buffer that a cast of the
    module to bf16 could round (bf16 can't tell position 256 from 257).
    """
    channel = torch.arange(0, dim, 2, device=pos.device, dtype=torch.float32)
    frequency = 1.0 / theta ** (channel / dim)
    angle = rearrange(pos, "b n -> b 1 n 1").to(torch.float32) * frequency
    return RotaryTable(angle.cos(), angle.sin())


def rotate(x: Float[Tensor, "b h n d"], table: RotaryTable) -> Float[Tensor, "b h n d"]:
    """Turn each pair of channels (2i, 2i+1) by its angle; channels beyond the table stay.

    The arithmetic is fp32, the result has the type of ``x``.
    """
    rotated = 2 * table.cos.shape[-1]
    even, odd = rearrange(x[..., :rotated], "... (r two) -> two ... r", two=2)
    turned = torch.stack(
        (even * table.cos - odd * table.sin, odd * table.cos + even * table.sin), dim=-1
    )
    out = rearrange(turned, "... r two -> ... (r two)").to(x.dtype)
    if rotated == x.shape[-1]:
        return out
    return torch.cat((out, x[..., rotated:]), dim=-1)
