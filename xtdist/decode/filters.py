"""Which tokens may be drawn: each filter sets the others of a row to -inf and keeps at least one.

As transformers defines them, in its order, each on what the one before it left. A column (r, 1)
holds the rows' own settings. Shapes: r rows, k candidates of a row (all of the vocabulary, or its
best in falling order).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def first_k(values: Float[Tensor, "r k"], top_k: Float[Tensor, "r 1"]) -> Float[Tensor, "r k"]:
    """The best ``top_k`` of rows in falling order; inf keeps all."""
    rank = torch.arange(values.shape[-1], device=values.device)
    return values.masked_fill(rank >= top_k, -math.inf)


def nucleus(
    values: Float[Tensor, "r k"], top_p: Float[Tensor, "r 1"], *, total: Float[Tensor, "r 1"]
) -> Float[Tensor, "r k"]:
    """The smallest prefix with at least ``top_p`` of the mass, of rows in falling order
    (https://arxiv.org/abs/1904.09751). ``total``: logsumexp of all that could be drawn."""
    probabilities = (values - total).exp()
    before = probabilities.cumsum(-1) - probabilities
    return values.masked_fill((before >= top_p) & (top_p < 1.0), -math.inf)


def near_best(values: Float[Tensor, "r k"], log_min_p: Float[Tensor, "r 1"]) -> Tensor:
    """min-p: p >= min_p * max p (https://arxiv.org/abs/2407.01082)."""
    return values.masked_fill(values < values.amax(-1, keepdim=True) + log_min_p, -math.inf)


def above_square(values: Float[Tensor, "r k"], log_top_a: Float[Tensor, "r 1"]) -> Tensor:
    """top-a: p >= top_a * max p ** 2, the more the surer the model is."""
    logprobs = values.log_softmax(-1)
    best = logprobs.amax(-1, keepdim=True).clamp(max=0.0)
    return values.masked_fill(logprobs < log_top_a + 2 * best, -math.inf)


def typical(values: Float[Tensor, "r k"], mass: Float[Tensor, "r 1"]) -> Float[Tensor, "r k"]:
    """Those whose surprise -log p is nearest to the entropy, until they hold ``mass``
    (https://arxiv.org/abs/2202.00666); ties with the last one stay."""
    logprobs = values.log_softmax(-1)
    terms = logprobs.exp() * logprobs
    entropy = -terms.masked_fill(logprobs.isneginf(), 0.0).sum(-1, keepdim=True)
    distance, order = (logprobs + entropy).abs().sort(dim=-1)
    held = logprobs.gather(-1, order).exp().cumsum(-1)
    last = (held < mass).sum(-1, keepdim=True).clamp(max=values.shape[-1] - 1)
    limit = distance.gather(-1, last)
    return values.masked_fill(((logprobs + entropy).abs() > limit) & (mass < 1.0), -math.inf)
