"""What an attention layer is."""

from __future__ import annotations

from typing import Literal

from xtdist.config import PositiveInt, Probability, configclass


@configclass
class AttentionConfig:
    """``kv_heads`` < heads shares keys and values between neighbouring query heads (GQA,
    2305.13245); null = one for each head. ``qk_rmsnorm`` normalizes queries and keys per head
    (2302.05442). ``dropout`` acts on the attention weights. ``backend`` auto = the fastest that
    fits."""

    dim_head: PositiveInt = 64
    kv_heads: PositiveInt | None = None
    qk_rmsnorm: bool = False
    dropout: Probability = 0.0
    backend: Literal["auto", "sdpa", "eager"] = "auto"
