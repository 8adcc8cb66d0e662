"""Multi-head latent attention (MLA), https://arxiv.org/abs/2405.04434."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.nn.attention.config import AttentionConfig, LatentConfig
from xtdist.nn.attention.projection import QKV, CrossProjection, HeadSizes, JointProjection
from xtdist.nn.linear import Linear


class LatentProjection(nn.Module):
    """Queries, keys and values through bottlenecks.

    With ``rotary_heads`` the last so many key heads come from the token itself; the others, and all
    values, are a function of the latent alone, so the latent and those heads are all that a cache
    has to keep.
    """

    def __init__(
        self, dim: int, sizes: HeadSizes, config: LatentConfig, *, dim_context: int
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.rotary_heads = config.rotary_heads or 0
        self.q_down = None if config.q_dim is None else Linear(dim, config.q_dim)
        self.kv_down = None if config.kv_dim is None else Linear(dim_context, config.kv_dim)
        kv_dim = config.kv_dim or dim_context
        self.to_q = Linear(config.q_dim or dim, sizes.widths[0])
        self.to_k = Linear(kv_dim, (sizes.kv_heads - self.rotary_heads) * sizes.dim)
        self.to_v = Linear(kv_dim, sizes.widths[2])
        self.to_rotary_k = None
        if self.rotary_heads:
            self.to_rotary_k = Linear(dim_context, self.rotary_heads * sizes.dim)

    def queries(self, x: Float[Tensor, "b i m"]) -> Float[Tensor, "b h i d"]:
        """Of the tokens."""
        x = x if self.q_down is None else self.q_down(x)
        return rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.sizes.heads)

    def compress(self, x: Float[Tensor, "b j m"]) -> tuple[Tensor, Tensor | None]:
        """The latent (b 1 j c), and the key heads that come from the token (b r j d)."""
        latent = x if self.kv_down is None else self.kv_down(x)
        rotary = None
        if self.to_rotary_k is not None:
            rotary = rearrange(self.to_rotary_k(x), "b n (h d) -> b h n d", h=self.rotary_heads)
        return rearrange(latent, "b n c -> b 1 n c"), rotary

    def expand(
        self, latent: Float[Tensor, "b 1 j c"], rotary: Float[Tensor, "b r j d"] | None
    ) -> tuple[Tensor, Tensor]:
        """Keys (b hk j d) and values (b hk j dv) from what ``compress`` gave."""
        latent = rearrange(latent, "b 1 n c -> b n c")
        d, dv = self.sizes.dim, self.sizes.value_dim
        k = rearrange(self.to_k(latent), "b n (h d) -> b h n d", d=d)
        v = rearrange(self.to_v(latent), "b n (h d) -> b h n d", d=dv)
        return (k if rotary is None else torch.cat((k, rotary), dim=1)), v

    def keys_values(self, source: Float[Tensor, "b j m"]) -> tuple[Tensor, Tensor]:
        """Keys and values, whole."""
        return self.expand(*self.compress(source))

    def forward(self, x: Float[Tensor, "b i m"], source: Float[Tensor, "b j m"]) -> QKV:
        """Queries of ``x``, keys and values of ``source``, whole."""
        return QKV(self.queries(x), *self.keys_values(source))


def build_projection(
    dim: int, dim_context: int | None, sizes: HeadSizes, config: AttentionConfig
) -> JointProjection | CrossProjection | LatentProjection:
    """The projection of a layer; ``dim_context`` None = self attention."""
    if config.latent is not None:
        return LatentProjection(dim, sizes, config.latent, dim_context=dim_context or dim)
    if dim_context is not None:
        return CrossProjection(dim, dim_context, sizes, bias=config.bias)
    return JointProjection(dim, sizes, bias=config.bias)


def keeps_latent(config: AttentionConfig) -> bool:
    """Whether a cache may keep the latent instead of keys and values: nothing but the token's own
    heads is rotated, normed or mixed on the way from the latent."""
    latent = config.latent
    if latent is None or latent.kv_dim is None or not latent.rotary_heads:
        return False
    return not (
        config.qk_rmsnorm or config.k_rmsnorm or config.value_rmsnorm or config.cosine is not None
    )
