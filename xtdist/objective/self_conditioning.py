"""A network that sees what it made of the sequence before, https://arxiv.org/abs/2208.04202.

There the last estimate is another input, and zeros where there is none. x-transformers projects
hidden states and adds them to the embeddings, or a learned vector where there are none: one more
constant, which Adam makes larger than the embeddings within some steps, since the vector's length
multiplies every step; with it a network learns worse than without. Here nothing is added where
there is nothing, and what is added has a size that the optimizer moves as slowly as an embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xtdist.nn.linear import Linear


class SelfConditioning(nn.Module):
    """Earlier hidden states as a part of the embedding: projected, normalized, times a gain.

    Both parameters have a gradient in every training step, be it zero where no row sees any.
    """

    def __init__(self, dim: int, emb_dim: int) -> None:
        super().__init__()
        self.proj = Linear(dim, emb_dim)
        self.gain = nn.Parameter(torch.empty(emb_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set the gain again: what is added is as large as embeddings are at first."""
        self.gain.fill_((3 * len(self.gain)) ** -0.5)

    def forward(
        self, previous: Float[Tensor, "b n d"], known: Bool[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b n e"]:
        """What is added to the embeddings. ``known``: rows that see their ``previous`` states, the
        others get zeros; None: all."""
        projected = self.proj(previous.to(self.gain.dtype))
        added = F.rms_norm(projected.float(), self.gain.shape).to(self.gain.dtype) * self.gain
        return added if known is None else added * rearrange(known, "b -> b 1 1")
