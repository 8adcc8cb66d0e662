"""The seam between attention layers and a decoder that keeps keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """How much a model leaves behind for each token: ``layers`` × (key, value) × ``kv_heads`` ×
    ``dim_head`` numbers."""

    layers: int
    kv_heads: int
    dim_head: int


class KVCache(Protocol):
    """One step's view of a key/value store. It owns the layout, the masks and the attention kernel:
    the model only hands over what the step's tokens produced."""

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b hk n d"],
        v: Float[Tensor, "b hk n d"],
        *,
        scale: float,
    ) -> Float[Tensor, "b h n d"]:
        """Store ``k`` (already rotated) and ``v`` of the step's n tokens, and return what each
        query reads from its own sequence, itself included.

        Query head i reads key/value head i // (h // hk), as ``scaled_dot_product_attention`` does
        with ``enable_gqa``.
        """
