"""Ways to compute softmax(q kᵀ · scale) v. All give the same numbers up to rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.attention.masks import lower_right


@dataclass(frozen=True, kw_only=True)
class Attend:
    """``mask`` (True = may attend) already holds causality; without a mask ``causal`` decides.
    ``dropout`` is the probability to drop a weight, 0 outside of training."""

    scale: float
    causal: bool
    mask: Bool[Tensor, "b 1 i j"] | None = None
    dropout: float = 0.0


class Backend(Protocol):
    """Query head i reads key/value head i // (h // hk)."""

    def __call__(
        self,
        q: Float[Tensor, "b h i d"],
        k: Float[Tensor, "b hk j d"],
        v: Float[Tensor, "b hk j d"],
        how: Attend,
    ) -> Float[Tensor, "b h i d"]: ...


def sdpa(
    q: Float[Tensor, "b h i d"],
    k: Float[Tensor, "b hk j d"],
    v: Float[Tensor, "b hk j d"],
    how: Attend,
) -> Float[Tensor, "b h i d"]:
    """torch's fused kernels: no score matrix is kept."""
    heads, kv_heads = q.shape[1], k.shape[1]
    if q.shape[2] == 1 and how.mask is None and heads != kv_heads:
        # A group's query heads become rows over one key head: no repetition of keys.
        rows = rearrange(q, "b (hk g) 1 d -> b hk g d", hk=kv_heads)
        out = F.scaled_dot_product_attention(rows, k, v, scale=how.scale)
        return rearrange(out, "b hk g d -> b (hk g) 1 d")
    mask = how.mask
    if mask is None and how.causal and 1 < q.shape[2] < k.shape[2]:
        mask = lower_right(q.shape[2], k.shape[2], q.device)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=how.dropout,
        is_causal=how.causal and mask is None and q.shape[2] > 1,
        scale=how.scale,
        enable_gqa=heads != kv_heads,
    )


def eager(
    q: Float[Tensor, "b h i d"],
    k: Float[Tensor, "b hk j d"],
    v: Float[Tensor, "b hk j d"],
    how: Attend,
) -> Float[Tensor, "b h i d"]:
    """The formula, step by step, softmax in fp32. Memory grows with i · j."""
    grouped = rearrange(q, "b (hk g) i d -> b hk g i d", hk=k.shape[1])
    scores = einsum(grouped, k, "b hk g i d, b hk j d -> b hk g i j").float() * how.scale
    if how.mask is not None:
        scores = scores.masked_fill(~rearrange(how.mask, "b 1 i j -> b 1 1 i j"), float("-inf"))
    elif how.causal:
        past = lower_right(q.shape[2], k.shape[2], q.device)
        scores = scores.masked_fill(~past, float("-inf"))
    weights = F.dropout(scores.softmax(dim=-1), how.dropout).to(v.dtype)
    out = einsum(weights, v, "b hk g i j, b hk j d -> b hk g i d")
    return rearrange(out, "b hk g i d -> b (hk g) i d")


BACKENDS: dict[str, Backend] = {"sdpa": sdpa, "eager": eager}


def resolve_backend(config: AttentionConfig) -> str:
    """The fastest backend that honours everything the layer declares."""
    return "sdpa" if config.backend == "auto" else config.backend
