"""Contextual position encoding (CoPE), https://arxiv.org/abs/2405.18719."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn


class _TalkingHeads(nn.Module):
    """Each head counts by a learned mix of all heads' scores."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start with each head by itself; nothing is drawn."""
        nn.init.eye_(self.weight)

    def forward(self, scores: Float[Tensor, "b h i j"]) -> Float[Tensor, "b h i j"]:
        return einsum(self.weight.to(scores.dtype), scores, "o h, b h i j -> b o i j")


class CoPE(nn.Module):
    """Positions that count only what the query finds: the position of key j is the sum of
    sigmoid(score) over the keys from j to the query, up to ``max_pos`` − 1, and adds
    q · embedding[position] to the score.

    Fractional positions interpolate between two embeddings or, with ``temperature``, weigh all of
    them by nearness. A query needs its own row of scores only, so cached = uncached.
    """

    def __init__(
        self,
        dim_head: int,
        *,
        heads: int,
        max_pos: int,
        temperature: float | None,
        talking_heads: bool,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.embedding = nn.Parameter(torch.empty(max_pos, dim_head))
        self.talking_heads = _TalkingHeads(heads) if talking_heads else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start with no say; nothing is drawn."""
        self.embedding.zero_()

    def forward(
        self,
        q: Float[Tensor, "b h i d"],
        scores: Float[Tensor, "b h i j"],
        mask: Bool[Tensor, "b _h i j"],
    ) -> Float[Tensor, "b h i j"]:
        """What to add to ``scores``, fp32. ``q`` unscaled; ``mask`` True = may attend, and nothing
        may be later than its query. What ``scores`` hold outside of the mask does not matter."""
        scores = scores.float().masked_fill(~mask, 0.0)
        if self.talking_heads is not None:
            scores = self.talking_heads(scores)
        gates = scores.sigmoid().masked_fill(~mask, 0.0)
        last = self.embedding.shape[0] - 1
        position = gates.flip(-1).cumsum(dim=-1).flip(-1).clamp(max=last)
        by_position = einsum(q.float(), self.embedding.float(), "b h i d, p d -> b h i p")
        if self.temperature is not None:
            return self._weighed(position, by_position, self.temperature)
        below, above = position.detach().floor().long(), position.detach().ceil().long()
        share = position - below
        return by_position.gather(-1, below) * (1 - share) + by_position.gather(-1, above) * share

    def _weighed(
        self,
        position: Float[Tensor, "b h i j"],
        by_position: Float[Tensor, "b h i p"],
        temperature: float,
    ) -> Float[Tensor, "b h i j"]:
        """Weights softmax(−|position − p| / temperature). Takes max_pos times the scores."""
        whole = torch.arange(by_position.shape[-1], device=position.device)
        away = (rearrange(position, "b h i j -> b h i j 1") - whole).abs()
        weights = F.softmax(-away / temperature, dim=-1)
        return einsum(weights, by_position, "b h i j p, b h i p -> b h i j")
