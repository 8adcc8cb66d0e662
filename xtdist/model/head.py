"""From hidden states to logits, where that is more than one matrix."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.nn.linear import Linear


class Mixture(nn.Module):
    """A mixture of ``count`` softmaxes (1711.03953): hidden states ↦ one for each, and the log of
    its share."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.to_parts = Linear(dim, count * dim)
        self.to_shares = Linear(dim, count)

    def forward(
        self, x: Float[Tensor, "... d"]
    ) -> tuple[Float[Tensor, "... k d"], Float[Tensor, "... k"]]:
        parts = rearrange(self.to_parts(x), "... (k d) -> ... k d", k=self.count)
        return parts, self.to_shares(x).float().log_softmax(dim=-1)

    @staticmethod
    def mix(
        logits: Float[Tensor, "... k v"], shares: Float[Tensor, "... k"]
    ) -> Float[Tensor, "... v"]:
        """Log-probabilities log Σ share · softmax(logits), computed in fp32."""
        parts = logits.float().log_softmax(dim=-1) + rearrange(shares, "... k -> ... k 1")
        return parts.logsumexp(dim=-2).to(logits.dtype)


class NextEmbedding(nn.Module):
    """Hidden states ↦ the next token's embedding: W₂ SiLU(W₁ x)."""

    def __init__(self, dim: int, emb_dim: int) -> None:
        super().__init__()
        self.hidden = Linear(dim, dim)
        self.out = Linear(dim, emb_dim)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... e"]:
        return self.out(F.silu(self.hidden(x)))


def sigsoftmax(logits: Float[Tensor, "... v"]) -> Float[Tensor, "... v"]:
    """Logits whose softmax is proportional to exp(l) σ(l) (1805.10829)."""
    return logits + F.logsigmoid(logits)


def squeezed(logits: Float[Tensor, "... v"]) -> Tensor:
    """A last axis of length one is dropped."""
    return logits.squeeze(-1)
