"""Token embedding and output head. The embedding can also be the head."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.nn.linear import scaled_normal_

HeadFunction = Callable[[Tensor, Tensor], Tensor]
"""(hidden (…, d), weight (v, d)) ↦ anything: logits, or a loss that never holds them all."""


class Head(nn.Module):
    """One vector for each token; ``forward`` gives them to a function of hidden states.

    The function runs inside this module's call, so whatever shards or gathers a module's weights
    around its call (ZeRO-3) covers it.
    """

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the vectors again."""
        scaled_normal_(self.weight, self.weight.shape[1], generator)

    def forward(self, x: Float[Tensor, "... d"], function: HeadFunction = F.linear) -> Tensor:
        return function(x, self.weight)


class TokenEmbedding(Head):
    """Ids ↦ vectors; given vectors, it is a head with the same weights (1608.05859).

    Tied this way, a copy of the model is tied to itself.
    """

    is_embedding = True

    def forward(
        self, x: Int[Tensor, "b n"] | Float[Tensor, "... d"], function: HeadFunction = F.linear
    ) -> Tensor:
        if x.is_floating_point():
            return function(x, self.weight)
        return F.embedding(x, self.weight)
