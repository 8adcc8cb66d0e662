"""Token embedding, which can also be the output head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.nn.linear import scaled_normal_


class TokenEmbedding(nn.Module):
    """Ids ↦ vectors; given vectors, vectors ↦ logits with the same weights (1608.05859).

    Both directions go through ``forward``, so that whatever shards or gathers a module's weights
    around its call (ZeRO-3) covers the tied head too, and a copy of the model is tied to itself.
    """

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the vectors again."""
        scaled_normal_(self.weight, self.weight.shape[1], generator)

    def forward(
        self, x: Int[Tensor, "b n"] | Float[Tensor, "... d"]
    ) -> Float[Tensor, "b n d"] | Float[Tensor, "... v"]:
        if x.is_floating_point():
            return F.linear(x, self.weight)
        return F.embedding(x, self.weight)
