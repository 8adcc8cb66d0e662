"""Token embedding and output head. The embedding can also be the head."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.nn.linear import product, scaled_normal_

HeadFunction = Callable[[Tensor, Tensor], Tensor]
"""(hidden (…, d), weight (v, d)) ↦ anything: logits, or a loss that never holds them all."""
TINY = 1e-5
"""Standard deviation of vectors that are normalized anyway."""


class Head(nn.Module):
    """One vector for each token; ``forward`` gives them to a function of hidden states.

    The function runs inside this module's call, so whatever shards or gathers a module's weights
    around its call (ZeRO-3) covers it. ``init_gain`` multiplies the start values.
    """

    init_gain = 1.0

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the vectors again."""
        scaled_normal_(self.weight, self.weight.shape[1], generator)
        self.weight.mul_(self.init_gain)

    def forward(self, x: Float[Tensor, "... d"], function: HeadFunction = product) -> Tensor:
        weight = self.weight
        if isinstance(weight, Tensor) or function is product:
            return function(x, weight)
        return function(x, weight.whole())


class TokenEmbedding(Head):
    """Ids ↦ vectors; given vectors, it is a head with the same weights (1608.05859).

    Tied this way, a copy of the model is tied to itself. ``unit``: the vectors have length one and
    start as tiny weights, which then turn fast (fixnorm, 1910.05895).
    """

    is_embedding = True

    def __init__(self, num_tokens: int, dim: int, *, unit: bool = False) -> None:
        self.unit = unit
        super().__init__(num_tokens, dim)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the vectors again."""
        if self.unit:
            nn.init.normal_(self.weight, std=TINY, generator=generator)
        else:
            super().reset_parameters(generator)

    def forward(
        self, x: Int[Tensor, "b n"] | Float[Tensor, "... d"], function: HeadFunction = product
    ) -> Tensor:
        if x.is_floating_point():
            return super().forward(x, function)
        weight = self.weight
        rows = F.embedding(x, weight) if isinstance(weight, Tensor) else weight.rows(x)
        return unit_vectors(rows) if self.unit else rows


class DeepEmbedding(nn.Module):
    """Ids ↦ one factor on the output of each of ``depth`` feed-forwards (RWKV-8), all 1 at first.

    The weight is (v, depth · d).
    """

    is_embedding = True

    def __init__(self, num_tokens: int, depth: int, dim: int) -> None:
        super().__init__()
        self.depth = depth
        self.weight = nn.Parameter(torch.empty(num_tokens, depth * dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start as the identity; nothing is drawn."""
        self.weight.fill_(1.0)

    def forward(self, x: Int[Tensor, "b n"]) -> Float[Tensor, "l b n d"]:
        return rearrange(F.embedding(x, self.weight), "b n (l d) -> l b n d", l=self.depth)


def unit_vectors(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """``x`` with length one, the length taken in fp32."""
    return F.normalize(x.float(), dim=-1).to(x.dtype)
