"""A network that sees what it made of the sequence before, https://arxiv.org/abs/2208.04202."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xtdist.nn.linear import Linear


class SelfConditioning(nn.Module):
    """Earlier hidden states, or a learned vector where there are none, as a part of the embedding.

    Both parameters have a part in every pass, and so a gradient in every training step.
    """

    def __init__(self, dim: int, emb_dim: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.empty(dim))
        self.proj = Linear(dim, emb_dim, init_gain=dim**-0.5)  # as large as embeddings at first
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the vector again: as large as normalized hidden states."""
        nn.init.normal_(self.null, generator=generator)

    def forward(
        self,
        shape: tuple[int, int],
        previous: Float[Tensor, "b n d"] | None = None,
        known: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b n e"]:
        """What is added to the embeddings of ``shape`` (b, n) tokens. ``known``: rows that see
        their ``previous`` states; None: all."""
        b, n = shape
        vectors: Tensor = repeat(self.null, "d -> b n d", b=b, n=n)
        if previous is not None:
            use = torch.ones(b, 1, 1, dtype=torch.bool, device=vectors.device)
            use = use if known is None else rearrange(known, "b -> b 1 1")
            vectors = torch.where(use, previous.to(vectors.dtype), vectors)
        projected: Tensor = self.proj(vectors)
        return projected
