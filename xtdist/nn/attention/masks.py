"""Attention masks. True = may attend."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor


def attention_mask(
    real: Bool[Tensor, "b n"] | None, *, causal: bool
) -> Bool[Tensor, "b 1 i j"] | None:
    """Which key j each query i may read, given which tokens are ``real`` (not padding).

    None means no restriction beyond causality, which backends apply themselves. No query is left
    without a key: a padding query of a causal model reads itself, and a sequence without any real
    token reads everything, so nothing becomes NaN; real tokens never see those values.
    """
    if real is None:
        return None
    if not causal:
        key_ok = real | ~real.any(dim=-1, keepdim=True)
        return rearrange(key_ok, "b j -> b 1 1 j")
    n = real.shape[1]
    past = torch.ones(n, n, dtype=torch.bool, device=real.device).tril()
    itself = torch.eye(n, dtype=torch.bool, device=real.device)
    return (rearrange(real, "b j -> b 1 1 j") & past) | itself


def lower_right(i: int, j: int, device: torch.device) -> Bool[Tensor, "i j"]:
    """The past of the last i of j tokens, themselves included."""
    return torch.ones(i, j, dtype=torch.bool, device=device).tril(j - i)
