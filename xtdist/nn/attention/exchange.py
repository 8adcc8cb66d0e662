"""Attention over sequences that neighbouring ranks hold in slices (Ulysses, 2309.14509): heads are
exchanged for positions, so that each rank reads whole sequences with a part of the heads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from xtdist.nn.attention.attend import Attend, remembered


@dataclass(frozen=True)
class SequenceGroup:
    """Ranks with consecutive slices, of one length, of the same rows. All of them call everything
    together. ``rank``: this one's place among ``size``, which divides the number of heads."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def heads(
        self,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b hk n d"],
        v: Float[Tensor, "b hk n dv"],
        how: Attend,
    ) -> tuple[Tensor, Tensor, Tensor, Attend]:
        """This rank's heads of the whole sequences. Of keys and values that serve query heads of
        several ranks, each of those gets its own copy."""
        copies = math.lcm(k.shape[1], self.size) // k.shape[1]
        if copies > 1:
            k, v = k.repeat_interleave(copies, dim=1), v.repeat_interleave(copies, dim=1)
        parts = [rearrange(t, "b (r h) n d -> r b h n d", r=self.size) for t in (q, k, v)]
        sizes = [part[0].numel() for part in parts]
        swapped = self._swap(torch.cat([part.flatten(1) for part in parts], dim=1))
        q, k, v = (
            rearrange(got.view(part.shape), "r b h n d -> b h (r n) d")
            for got, part in zip(swapped.split(sizes, dim=1), parts, strict=True)
        )
        return q, k, v, self._of_heads(how)

    def positions(self, out: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """What all heads read at this rank's positions, of what its heads read at all."""
        swapped = self._swap(rearrange(out, "b h (r n) d -> r b h n d", r=self.size))
        return rearrange(swapped, "r b h n d -> b (r h) n d")

    def _swap(self, blocks: Float[Tensor, "r ..."]) -> Tensor:
        swapped: Tensor = _Swap.apply(blocks, self.group)
        return swapped

    def _of_heads(self, how: Attend) -> Attend:
        """The rules for whole sequences, and what belongs to this rank's heads."""
        rules, sink = how.visible, how.sink
        for other in (how.bias, rules.table, rules.prefix):
            assert other is None
        assert not rules.lead
        if sink is not None:
            sink = sink.chunk(self.size)[self.rank]
        visible = replace(
            rules,
            keys=remembered(how, "whole keys", lambda: self._whole(rules.keys)),
            documents=remembered(how, "whole documents", lambda: self._whole(rules.documents)),
        )
        return replace(how, visible=visible, sink=sink)

    def _whole(self, slices: Tensor | None) -> Tensor | None:
        """(b, n / size) of each rank as (b, n)."""
        if slices is None:
            return None
        sent = slices.contiguous()
        sent = sent.to(torch.uint8) if sent.dtype == torch.bool else sent
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(parts, sent, group=self.group)
        return torch.cat(parts, dim=1).to(slices.dtype)


class _Swap(torch.autograd.Function):
    """Block r of each rank goes to rank r: its own inverse, and its own gradient."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _swapped(blocks, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _swapped(grad, ctx.group), None


def _swapped(blocks: Tensor, group: dist.ProcessGroup) -> Tensor:
    sent = blocks.contiguous()
    got = torch.empty_like(sent)
    dist.all_to_all_single(got, sent, group=group)
    return got
