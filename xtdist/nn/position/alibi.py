"""Attention with linear biases (ALiBi), https://arxiv.org/abs/2108.12409."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.nn.position.constants import constants


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """The paper's slopes: 2^(−8i/heads) for i = 1 … heads; with a number of heads that is no power
    of two those of the power below, then every other of the power above."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2 ** (-8 * i / (2 * power)) for i in range(1, 2 * power + 1, 2)]
    return tuple((slopes + between)[:heads])


class AlibiBias(nn.Module):
    """−slope · |distance|, with a slope for each head.

    ``slopes`` belong to the first heads as x-transformers counts them, where head t reads
    key/value head t mod ``kv_heads``; the other heads get 0. Here query head i reads key/value
    head i // (heads / kv_heads), and the slopes move along.
    """

    def __init__(self, slopes: tuple[float, ...], *, heads: int, kv_heads: int) -> None:
        super().__init__()
        padded = slopes + (0.0,) * (heads - len(slopes))
        theirs = [range(kv, heads, kv_heads) for kv in range(kv_heads)]  # of each kv head
        self.slopes = tuple(padded[head] for group in theirs for head in group)

    def forward(
        self, q_pos: Int[Tensor, "b i"], k_pos: Int[Tensor, "b j"], *, reach: int | None = None
    ) -> Float[Tensor, "b h i j"]:
        """The bias of every pair, fp32."""
        distance = rearrange(q_pos, "b i -> b 1 i 1") - rearrange(k_pos, "b j -> b 1 1 j")
        slopes = rearrange(constants(self.slopes, q_pos.device), "h -> h 1 1")
        return -slopes * distance.abs()

    def flex(
        self, q_pos: Int[Tensor, "b i"], k_pos: Int[Tensor, "b j"]
    ) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The bias as a ``score_mod`` of torch's flex_attention: no i × j tensor."""
        slopes = constants(self.slopes, q_pos.device)

        def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            q_row = b if q_pos.shape[0] > 1 else torch.zeros_like(b)
            k_row = b if k_pos.shape[0] > 1 else torch.zeros_like(b)
            return score - slopes[h] * (q_pos[q_row, i] - k_pos[k_row, j]).abs()

        return add
