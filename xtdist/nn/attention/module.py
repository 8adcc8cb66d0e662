"""Multi-head attention, https://arxiv.org/abs/1706.03762."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xtdist.nn.attention.backends import BACKENDS, Attend, resolve_backend
from xtdist.nn.attention.cache import KVCache
from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.linear import Linear
from xtdist.nn.norm import RMSNorm, RMSNormConfig
from xtdist.nn.position.rotary import RotaryTable, rotate


@dataclass(frozen=True, kw_only=True)
class AttentionGeometry:
    """What an attention layer takes from the stack that it stands in."""

    dim: int
    heads: int
    causal: bool
    layer: int
    init_gain: float = 1.0


@dataclass(frozen=True, kw_only=True)
class AttentionInputs:
    """What all attention layers of one forward pass share. ``mask`` True = may attend."""

    rotary: RotaryTable | None = None
    mask: Bool[Tensor, "b 1 i j"] | None = None
    cache: KVCache | None = None


class Attention(nn.Module):
    """out(softmax(q kᵀ / √d) v) with q, k, v projected from ``x`` by one matrix, in this order.

    Query head i reads key/value head i // (heads // kv_heads).
    """

    def __init__(self, geometry: AttentionGeometry, config: AttentionConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = geometry.heads, config.kv_heads or geometry.heads
        self.layer, self.causal = geometry.layer, geometry.causal
        self.scale = config.dim_head**-0.5
        self.dropout = config.dropout
        self.backend = resolve_backend(config)

        inner = self.heads * config.dim_head
        qkv = (self.heads + 2 * self.kv_heads) * config.dim_head
        self.to_qkv = Linear(geometry.dim, qkv)
        self.to_out = Linear(inner, geometry.dim, init_gain=geometry.init_gain)
        self.query_norm = self.key_norm = None
        if config.qk_rmsnorm:
            self.query_norm = RMSNorm((self.heads, 1, config.dim_head), RMSNormConfig())
            self.key_norm = RMSNorm((self.kv_heads, 1, config.dim_head), RMSNormConfig())

    def forward(self, x: Float[Tensor, "b n d"], shared: AttentionInputs) -> Float[Tensor, "b n d"]:
        q, k, v = self.project(x)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if shared.rotary is not None:
            q, k = rotate(q, shared.rotary), rotate(k, shared.rotary)
        if shared.cache is not None:
            reads = shared.cache.update(self.layer, (k, v))
            outs = [self._read(q[:, :, read.rows], *read.kept) for read in reads]
            out = torch.cat(outs, dim=2)
        else:
            how = Attend(
                scale=self.scale,
                causal=self.causal,
                mask=shared.mask,
                dropout=self.dropout if self.training else 0.0,
            )
            out = BACKENDS[self.backend](q, k, v, how)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))

    def _read(
        self,
        q: Float[Tensor, "1 h i d"],
        k: Float[Tensor, "1 hk j d"],
        v: Float[Tensor, "1 hk j d"],
    ) -> Float[Tensor, "1 h i d"]:
        """What the last i of j tokens read."""
        return BACKENDS[self.backend](q, k, v, Attend(scale=self.scale, causal=True))

    def project(
        self, x: Float[Tensor, "b n d"]
    ) -> tuple[
        Float[Tensor, "b h n d"],
        Float[Tensor, "b hk n d"],
        Float[Tensor, "b hk n d"],
    ]:
        """Queries, keys and values, split into heads."""
        heads = rearrange(self.to_qkv(x), "b n (h d) -> b h n d", h=self.heads + 2 * self.kv_heads)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        return q, k, v
