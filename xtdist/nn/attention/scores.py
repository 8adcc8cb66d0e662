"""What happens to attention scores on the way to weights: one small module for each idea.

They act on the full table of scores (b h i j), so a layer with one of them needs the eager backend
(softclamp and sinks also run on others). Order: similarity · scale, + the previous layer's scores,
``RAW``, + position bias, ``BIASED``, mask, ``MASKED``, weights, dropout, ``WEIGHTS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xtdist.nn.attention.config import AttentionConfig, GumbelConfig, TopKConfig
from xtdist.nn.attention.masks import Visible
from xtdist.nn.position.geometry import PositionGeometry

Scores = Float[Tensor, "b h i j"]


class TalkingHeads(nn.Module):
    """Every head's table as a learned mix of all heads' (2003.02436); starts as the identity.

    The matrix is stored as the 1 × 1 convolution that it is.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start as the identity."""
        self.weight.copy_(torch.eye(len(self.weight), device=self.weight.device))

    def forward(self, scores: Scores) -> Scores:
        return einsum(self.weight.to(scores.dtype), scores, "out h, b h i j -> b out i j")


def dot(q: Float[Tensor, "b h i d"], k: Float[Tensor, "b hk j d"]) -> Scores:
    """q · k in fp32, key head i // (h / hk) for query head i."""
    grouped = rearrange(q, "b (hk g) i d -> b hk g i d", hk=k.shape[1])
    scores = einsum(grouped, k, "b hk g i d, b hk j d -> b hk g i j")
    return rearrange(scores, "b hk g i j -> b (hk g) i j").float()


def minus_squared_distance(q: Float[Tensor, "b h i d"], k: Float[Tensor, "b hk j d"]) -> Scores:
    """−|q − k|² in fp32."""
    q_norm = q.float().square().sum(dim=-1, keepdim=True)
    k_norm = k.float().square().sum(dim=-1).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return 2 * dot(q, k) - q_norm - rearrange(k_norm, "b h j -> b h 1 j")


def softclamp(x: Tensor, cap: float) -> Tensor:
    """cap · tanh(x / cap): the identity near 0, never beyond ±cap (2408.00118)."""
    return (x / cap).tanh() * cap


def selective(scores: Scores, seen: Bool[Tensor, "b _h _i j"] | None = None) -> Scores:
    """Minus what earlier queries' first head voted to hide of each key (2410.02703).

    Only a later query is affected; keys before the i tokens (memories), the first token and a
    query's own are never hidden. A token has a vote for those that may read it alone, as ``seen``
    says; None = all.
    """
    i, j = scores.shape[-2:]
    votes = F.relu(scores[:, 0])
    places = torch.arange(j, device=scores.device)
    own = places == rearrange(places[j - i :], "i -> i 1")
    votes = rearrange(votes.masked_fill(own | (places <= j - i), 0.0), "b m j -> b 1 m j")
    heard = None if seen is None else seen[..., j - i :]  # b h l m: l may read m
    if heard is not None and heard.shape[2] > 1:
        return scores - (heard.tril(-1).to(votes.dtype) @ votes)
    if heard is not None:
        votes = votes.masked_fill(~rearrange(heard, "b h 1 m -> b h m 1"), 0.0)
    return scores - F.pad(votes.cumsum(dim=-2), (0, 0, 1, 0))[:, :, :-1]


def softmax(scores: Scores) -> Scores:
    """Σ over keys = 1."""
    return scores.softmax(dim=-1)


def straight_through(value: Tensor, soft: Tensor) -> Tensor:
    """``value`` with the gradient of ``soft``."""
    return value.detach() + soft - soft.detach()


def top_k(scores: Scores, config: TopKConfig) -> Scores:
    """Softmax over the k largest scores; all of them where there are fewer than k."""
    k = min(config.k, scores.shape[-1])
    least = scores.topk(k, dim=-1).values[..., -1:]
    kept = scores.masked_fill(scores < least, float("-inf")).softmax(dim=-1)
    return straight_through(kept, scores.softmax(dim=-1)) if config.straight_through else kept


def largest(scores: Scores) -> Scores:
    """1 for the largest score, else 0."""
    if not scores.numel():  # no place is the largest among none
        return torch.zeros_like(scores)
    return torch.zeros_like(scores).scatter(-1, scores.argmax(dim=-1, keepdim=True), 1.0)


def hard(scores: Scores) -> Scores:
    """1 for the largest score, else 0, with the gradient of a softmax."""
    return straight_through(largest(scores), scores.softmax(dim=-1))


def gumbel(scores: Scores, config: GumbelConfig) -> Scores:
    """Softmax of scores with Gumbel noise; noise from torch's default generator."""
    noise = -torch.empty_like(scores).exponential_().log()
    soft = ((scores + noise) / config.temperature).softmax(dim=-1)
    if not config.hard:
        return soft
    return straight_through(largest(soft), soft)


WEIGHTS: dict[str, Callable[..., Scores]] = {
    "softmax": softmax,
    "sigmoid": torch.sigmoid,
    "topk": top_k,
    "hard": hard,
    "gumbel": gumbel,
    "signed": softmax,
}
_WITH_SETTINGS = {"topk", "gumbel"}


class ScoreMods(nn.Module):
    """What a layer does to its scores, in the order given above."""

    def __init__(self, config: AttentionConfig, geometry: PositionGeometry) -> None:
        super().__init__()
        self.config, heads = config, geometry.heads
        self.cope = None if config.cope is None else config.cope.build(geometry)
        self.pre = TalkingHeads(heads) if config.pre_talking_heads else None
        self.post = TalkingHeads(heads) if config.post_talking_heads else None
        self.pre_to_post = TalkingHeads(heads) if config.pre_scale_post_talking_heads else None

    def similarity(self, q: Tensor, k: Tensor) -> Scores:
        """How alike queries and keys are."""
        return dot(q, k) if self.config.similarity == "dot" else minus_squared_distance(q, k)

    def raw(self, scores: Scores) -> Scores:
        """Before position bias and mask."""
        return scores if self.pre is None else scores + self.pre(scores)

    def biased(self, scores: Scores) -> Scores:
        """Before the mask."""
        cap = self.config.softclamp
        return scores if cap is None else softclamp(scores, cap)

    @property
    def signed(self) -> bool:
        """Weights are those of the sizes of the scores, which get their signs back."""
        return self.config.weights.kind == "signed"

    def masked(self, scores: Scores, q: Tensor, allowed: Tensor | None, visible: Visible) -> Scores:
        """After the mask; masked scores are −∞. ``allowed`` is the table of ``visible``."""
        if self.cope is not None:
            everything = scores.new_ones((), dtype=torch.bool) if allowed is None else allowed
            scores = scores + self.cope(q, scores, mask=everything)
        if self.config.selective:
            i, j = scores.shape[2:]
            scores = selective(scores, visible.wherever(i, j, scores.device))
        return scores

    def weigh(self, scores: Scores) -> Scores:
        """Scores ↦ weights."""
        how: Any = self.config.weights
        settings = (how,) if how.kind in _WITH_SETTINGS else ()
        return WEIGHTS[how.kind](scores, *settings)

    def weights(self, weights: Scores, raw: Scores) -> Scores:
        """After dropout; ``raw`` are the scores before bias and mask."""
        if self.post is not None:
            weights = self.post(weights)
        if self.pre_to_post is not None:
            weights = weights * self.pre_to_post(raw)
        return weights
