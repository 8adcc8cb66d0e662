"""Ways to compute softmax(q kᵀ · scale) v. All give the same numbers up to rounding."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from xtdist.nn.attention.config import AttentionConfig


class Backend(Protocol):
    """``mask`` (True = may attend) already holds causality; without a mask ``causal`` decides.
    Query head i reads key/value head i // (h // hk)."""

    def __call__(
        self,
        q: Float[Tensor, "b h i d"],
        k: Float[Tensor, "b hk j d"],
        v: Float[Tensor, "b hk j d"],
        *,
        mask: Bool[Tensor, "b 1 i j"] | None,
        causal: bool,
        scale: float,
        dropout: float,
    ) -> Float[Tensor, "b h i d"]: ...


def sdpa(
    q: Float[Tensor, "b h i d"],
    k: Float[Tensor, "b hk j d"],
    v: Float[Tensor, "b hk j d"],
    *,
    mask: Bool[Tensor, "b 1 i j"] | None,
    causal: bool,
    scale: float,
    dropout: float,
) -> Float[Tensor, "b h i d"]:
    """torch's fused kernels: no score matrix is kept."""
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def eager(
    q: Float[Tensor, "b h i d"],
    k: Float[Tensor, "b hk j d"],
    v: Float[Tensor, "b hk j d"],
    *,
    mask: Bool[Tensor, "b 1 i j"] | None,
    causal: bool,
    scale: float,
    dropout: float,
) -> Float[Tensor, "b h i d"]:
    """The formula, step by step, softmax in fp32. Memory grows with i · j."""
    grouped = rearrange(q, "b (hk g) i d -> b hk g i d", hk=k.shape[1])
    scores = einsum(grouped, k, "b hk g i d, b hk j d -> b hk g i j").float() * scale
    if mask is not None:
        scores = scores.masked_fill(~rearrange(mask, "b 1 i j -> b 1 1 i j"), float("-inf"))
    elif causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    weights = F.dropout(scores.softmax(dim=-1), dropout).to(v.dtype)
    out = einsum(weights, v, "b hk g i j, b hk j d -> b hk g i d")
    return rearrange(out, "b hk g i d -> b (hk g) i d")


BACKENDS: dict[str, Backend] = {"sdpa": sdpa, "eager": eager}


def resolve_backend(config: AttentionConfig) -> str:
    """The fastest backend that honours everything the layer declares."""
    return "sdpa" if config.backend == "auto" else config.backend
