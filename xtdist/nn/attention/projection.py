"""From tokens to queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.nn.attention.config import AttentionConfig, CosineConfig
from xtdist.nn.linear import Linear, product
from xtdist.nn.norm import RMSNorm, RMSNormConfig


@dataclass(frozen=True, kw_only=True)
class HeadSizes:
    """h query heads, hk key/value heads; channels of queries and keys, and of values."""

    heads: int
    kv_heads: int
    dim: int
    value_dim: int

    @classmethod
    def of(cls, heads: int, config: AttentionConfig) -> HeadSizes:
        """As ``config`` says, for a stack with ``heads``."""
        return cls(
            heads=heads,
            kv_heads=config.kv_heads or heads,
            dim=config.dim_head,
            value_dim=config.value_dim_head or config.dim_head,
        )

    @property
    def widths(self) -> tuple[int, int, int]:
        """Channels of all queries, all keys, all values."""
        keys, values = self.kv_heads * self.dim, self.kv_heads * self.value_dim
        return self.heads * self.dim, keys, values


class QKV(NamedTuple):
    """Queries, keys, values."""

    q: Float[Tensor, "b h i d"]
    k: Float[Tensor, "b hk j d"]
    v: Float[Tensor, "b hk j dv"]


class JointProjection(Linear):
    """Queries, keys and values by one matrix, in this order.

    It may be given one input for all three, or one for each: either way in one call of this module,
    so that a sharded weight (ZeRO-3) is gathered around it.
    """

    def __init__(self, dim: int, sizes: HeadSizes, *, bias: bool = False) -> None:
        self.sizes = sizes
        super().__init__(dim, sum(sizes.widths), bias=bias)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b n m"], kv: tuple[Tensor, Tensor] | None = None
    ) -> QKV:
        s = self.sizes
        if kv is None:
            q, k, v = product(x, self.weight, self.bias).split(s.widths, dim=-1)
        else:
            biases = (None,) * 3 if self.bias is None else self.bias.split(s.widths)
            parts = zip((x, *kv), self.weight.split(s.widths), biases, strict=True)
            q, k, v = (product(source, weight, bias) for source, weight, bias in parts)
        return QKV(in_heads(q, s.heads), in_heads(k, s.kv_heads), in_heads(v, s.kv_heads))


def in_heads(x: Float[Tensor, "b n c"], heads: int) -> Float[Tensor, "b h n d"]:
    """The channels in heads. (Without einops, which takes three times as long: decoding a token
    does little else in a layer.)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def apart(v: Float[Tensor, "b hk n d"]) -> Float[Tensor, "b hk n d"]:
    """``v`` on memory of its own, where a backward pass will want it: as a view of the joint
    projection it would keep the queries and keys before their rotation alive too."""
    if not (torch.is_grad_enabled() and v.requires_grad) or torch.compiler.is_compiling():
        return v
    return rearrange(rearrange(v, "b h n d -> b n h d").contiguous(), "b n h d -> b h n d")


class CrossProjection(nn.Module):
    """Queries from the tokens, keys and values from the context, which may have another width."""

    def __init__(self, dim: int, dim_context: int, sizes: HeadSizes, *, bias: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        widths = sizes.widths
        self.to_q = Linear(dim, widths[0], bias=bias)
        self.to_kv = Linear(dim_context, widths[1] + widths[2], bias=bias)

    def queries(self, x: Float[Tensor, "b i m"]) -> Float[Tensor, "b h i d"]:
        """Of the tokens."""
        return rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.sizes.heads)

    def keys_values(self, context: Float[Tensor, "b j c"]) -> tuple[Tensor, Tensor]:
        """Of the context: (b hk j d), (b hk j dv)."""
        k, v = self.to_kv(context).split(self.sizes.widths[1:], dim=-1)
        heads = self.sizes.kv_heads
        return (
            rearrange(k, "b n (h d) -> b h n d", h=heads),
            rearrange(v, "b n (h d) -> b h n d", h=heads),
        )


class HeadNorms(nn.Module):
    """Norms of queries, keys and values, head by head."""

    def __init__(self, sizes: HeadSizes, config: AttentionConfig) -> None:
        super().__init__()
        queries: tuple[int, ...] = (sizes.heads, 1, sizes.dim)
        keys: tuple[int, ...] = (sizes.kv_heads, 1, sizes.dim)
        if config.shared_norm_gain:
            queries = keys = (sizes.dim,)
        values = (sizes.kv_heads, 1, sizes.value_dim)
        norm = RMSNormConfig(unit_offset=not config.shared_norm_gain)
        self.query = RMSNorm(queries, norm) if config.qk_rmsnorm else None
        self.key = RMSNorm(keys, norm) if config.qk_rmsnorm or config.k_rmsnorm else None
        self.value = RMSNorm(values, norm) if config.value_rmsnorm else None
        self.unit_query = self.unit_key = None
        if config.cosine is not None:
            self.unit_query = UnitHeads(sizes.heads, sizes.dim, config.cosine)
            self.unit_key = UnitHeads(sizes.kv_heads, sizes.dim, config.cosine)

        parts = (self.query, self.key, self.value, self.unit_query)
        self.empty = all(part is None for part in parts)

    def forward(self, qkv: QKV) -> QKV:
        q, k, v = qkv
        return QKV(self.queries(q), self.keys(k), self.values(v))

    def keys(self, k: Float[Tensor, "b hk n d"]) -> Float[Tensor, "b hk n d"]:
        """Normed keys."""
        k = k if self.unit_key is None else self.unit_key(k)
        return k if self.key is None else self.key(k)

    def values(self, v: Float[Tensor, "b hk n dv"]) -> Float[Tensor, "b hk n dv"]:
        """Normed values."""
        return v if self.value is None else self.value(v)

    def queries(self, q: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """Normed queries."""
        q = q if self.unit_query is None else self.unit_query(q)
        return q if self.query is None else self.query(q)


class UnitHeads(nn.Module):
    """Vectors of unit length in groups of channels, times a learned scale where there is one."""

    def __init__(self, heads: int, dim: int, config: CosineConfig) -> None:
        super().__init__()
        self.groups, self.dim = config.groups, dim
        shape = (heads, 1, dim)
        self.scale = nn.Parameter(torch.empty(shape)) if config.learned_scale else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start at the size that dot products of random vectors have."""
        if self.scale is not None:
            self.scale.fill_(self.dim**0.25)

    def forward(self, x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        grouped = rearrange(x, "... (g d) -> ... g d", g=self.groups)
        unit = rearrange(F.normalize(grouped.float(), dim=-1), "... g d -> ... (g d)").to(x.dtype)
        return unit if self.scale is None else unit * self.scale.to(x.dtype)
