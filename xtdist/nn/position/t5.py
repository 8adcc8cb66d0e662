"""Relative position buckets of T5, https://arxiv.org/abs/1910.10683."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.nn.linear import scaled_normal_


def bucket_starts(buckets: int, max_distance: int) -> tuple[int, ...]:
    """The first distance of each bucket but the first, of one direction: half of the buckets hold
    one distance each, the others grow geometrically up to ``max_distance``.

    Bucket = number of starts at or below the distance. Whole numbers, found once with the fp32
    arithmetic of the original on the CPU: no device or compiler can round a distance into the
    neighbouring bucket.
    """
    exact = buckets // 2
    distance = torch.arange(exact, max_distance + 1, dtype=torch.float32, device="cpu")
    grown = torch.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact)
    bucket = (exact + grown.long()).clamp(max=buckets - 1)
    starts = exact + torch.searchsorted(bucket, torch.arange(exact + 1, buckets, device="cpu"))
    return (*range(1, exact + 1), *starts.tolist())


class T5Bias(nn.Module):
    """``scale`` · weight[bucket(distance), head].

    A causal stack has all ``buckets`` for the past (the future is bucket 0, and masked); others
    split them, the second half for keys that come later.
    """

    def __init__(
        self, heads: int, *, buckets: int, max_distance: int, causal: bool, scale: float
    ) -> None:
        super().__init__()
        self.causal, self.scale = causal, scale
        self.one_way = buckets if causal else buckets // 2
        self.starts = bucket_starts(self.one_way, max_distance)
        self.weight = nn.Parameter(torch.empty(buckets, heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw biases of standard deviation 3^-1/2."""
        scaled_normal_(self.weight, 1, generator)
        self.weight.div_(self.scale)

    def bucket(self, distance: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The row of the weight for ``distance`` = query position − key position."""
        past = distance.clamp(min=0) if self.causal else distance.abs()
        exact = self.one_way // 2
        bucket = past.clamp(max=exact)
        for start in self.starts[exact:]:
            bucket = bucket + (past >= start)
        return bucket if self.causal else bucket + self.one_way * (distance < 0)

    def by_distance(self) -> Float[Tensor, "distances h"]:
        """The bias of all distances that differ: −top … top, top = the start of the last bucket."""
        top = self.starts[-1]
        distance = torch.arange(-top, top + 1, device=self.weight.device)
        return F.embedding(self.bucket(distance), self.weight.float()) * self.scale

    def forward(
        self, q_pos: Int[Tensor, "b i"], k_pos: Int[Tensor, "b j"], *, reach: int | None = None
    ) -> Float[Tensor, "b h i j"]:
        """The bias of every pair, fp32."""
        top = self.starts[-1]
        distance = rearrange(q_pos, "b i -> b i 1") - rearrange(k_pos, "b j -> b 1 j")
        bias = F.embedding(distance.clamp(-top, top) + top, self.by_distance())
        return rearrange(bias, "b i j h -> b h i j")

    def flex(
        self, q_pos: Int[Tensor, "b i"], k_pos: Int[Tensor, "b j"]
    ) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The bias as a ``score_mod`` of torch's flex_attention: no i × j tensor."""
        top, table = self.starts[-1], self.by_distance()

        def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            q_row = b if q_pos.shape[0] > 1 else torch.zeros_like(b)
            k_row = b if k_pos.shape[0] > 1 else torch.zeros_like(b)
            distance = (q_pos[q_row, i] - k_pos[k_row, j]).clamp(-top, top)
            return score + table[distance + top, h]

        return add
