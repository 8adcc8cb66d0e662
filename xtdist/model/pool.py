"""A sequence of any length as a few vectors, https://arxiv.org/abs/1810.00825."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xtdist.config import ConfigError, NonNegativeInt, PositiveInt, configclass
from xtdist.model.compat import layers_config
from xtdist.model.config import LayersConfig
from xtdist.model.keywords import config_of
from xtdist.model.layers import Layers
from xtdist.model.options.resolver import resolve
from xtdist.model.parts import QueriesPoolConfig
from xtdist.model.stack import StackInputs
from xtdist.model.tensors import check_tensor
from xtdist.nn.attention.inputs import AttentionInputs, Context
from xtdist.nn.attention.module import Attention, AttentionGeometry


@configclass
class AttentionPoolConfig:
    """How to pool.

    ``num_pooled_tokens`` learned queries (0: they are given to ``forward``) read a context of width
    ``dim_context`` (null = dim). With ``use_transformer_blocks`` (null = where ``depth`` > 1) they
    pass ``depth`` blocks of cross attention and feed-forward, otherwise one attention.
    ``add_residual`` adds the queries to what one attention read. ``squeeze_output`` drops the axis
    of a single pooled token.
    """

    num_pooled_tokens: NonNegativeInt = 1
    dim_context: PositiveInt | None = None
    add_residual: bool = False
    depth: PositiveInt = 1
    heads: PositiveInt = 8
    dim_head: PositiveInt = 64
    use_transformer_blocks: bool | None = None
    squeeze_output: bool = False

    @property
    def in_blocks(self) -> bool:
        """Whether the queries pass whole blocks."""
        return (
            self.depth > 1 if self.use_transformer_blocks is None else self.use_transformer_blocks
        )

    def __post_init__(self) -> None:
        if self.squeeze_output and self.num_pooled_tokens != 1:
            raise ConfigError(
                f"squeeze_output: {self.num_pooled_tokens} pooled tokens can't be one vector; set "
                "num_pooled_tokens=1 or leave it out"
            )
        if self.depth > 1 and not self.in_blocks:
            raise ConfigError(
                f"use_transformer_blocks: got False with depth={self.depth}; a single attention "
                "has no depth: leave one of them out"
            )
        if self.add_residual and self.in_blocks:
            raise ConfigError(
                "add_residual: transformer blocks have their own residual; leave it out"
            )


class AttentionPool(nn.Module):
    """Learned queries that cross attend to a sequence.

    Example:
        >>> AttentionPool(dim=512, num_pooled_tokens=4, heads=8)(torch.randn(2, 100, 512)).shape
        torch.Size([2, 4, 512])
    """

    def __init__(
        self, dim: int, *, attn_kwargs: Mapping[str, Any] | None = None, **keywords: Any
    ) -> None:
        """``keywords``: the fields of ``AttentionPoolConfig``. ``attn_kwargs``: further options of
        the attention, in x-transformers' words without ``attn_``, such as {"qk_rmsnorm": True}.

        Raises:
            TypeError: an unknown keyword.
            ConfigError: values that can't be, or not together.
        """
        super().__init__()
        self.dim = dim
        self.config = config_of(AttentionPoolConfig, keywords, name="AttentionPool")
        stack = pool_layers(dim, self.config, attn_kwargs or {})
        self.pooler = Layers(stack) if self.config.in_blocks else _single(stack)
        count = self.config.num_pooled_tokens
        self.queries = nn.Parameter(torch.empty(count, dim)) if count else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start with small queries, which read everything alike."""
        if self.queries is not None:
            nn.init.normal_(self.queries, std=1e-2, generator=generator)

    def forward(
        self,
        context: Float[Tensor, "b n c"],
        mask: Bool[Tensor, "b n"] | None = None,
        queries: Float[Tensor, "b p d"] | None = None,
    ) -> Float[Tensor, "b p d"] | Float[Tensor, "b d"]:
        """What the queries read of ``context``; ``mask`` True = a real token. Queries that are
        given take the place of the learned ones.

        Raises:
            ValueError: shapes that don't fit, or no queries at all.
        """
        queries = self._queries(context, mask, queries)
        if isinstance(self.pooler, Layers):
            given = StackInputs(context=context, context_mask=mask)
            pooled = self.pooler.run(queries, given).hidden
        else:
            place = torch.arange(queries.shape[1], device=context.device)[None]
            shared = AttentionInputs(
                q_pos=place, k_pos=place, context=Context(states=context, mask=mask)
            )
            pooled = self.pooler(queries, shared).out
        pooled = pooled + queries if self.config.add_residual else pooled
        return rearrange(pooled, "b 1 d -> b d") if self.config.squeeze_output else pooled

    def _queries(self, context: Tensor, mask: Tensor | None, queries: Tensor | None) -> Tensor:
        width = self.config.dim_context or self.dim
        for name, value in (("context", context), ("mask", mask), ("queries", queries)):
            if value is not None or name == "context":
                check_tensor(value, name=name)
        if context.ndim != 3 or context.shape[-1] != width:
            raise ValueError(f"context: got {tuple(context.shape)}; give (b, n, {width})")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != context.shape[:2]):
            raise ValueError(
                f"mask: got {mask.dtype} {tuple(mask.shape)}; give bool "
                f"{tuple(context.shape[:2])}, True = a real token"
            )
        if queries is not None:
            if queries.ndim != 3 or (len(queries), queries.shape[-1]) != (len(context), self.dim):
                raise ValueError(
                    f"queries: got {tuple(queries.shape)}; give ({len(context)}, p, {self.dim})"
                )
            return queries
        if self.queries is None:
            raise ValueError("queries: missing; with num_pooled_tokens=0 they must be given")
        return repeat(self.queries, "p d -> b p d", b=len(context))


def pool_of(config: Any) -> AttentionPoolConfig | None:
    """How a model pools its output by attention, if it does: by heads like its own."""
    pool = getattr(config, "pool", None)
    if not isinstance(pool, QueriesPoolConfig):
        return None
    return AttentionPoolConfig(
        num_pooled_tokens=pool.tokens,
        dim_context=config.dim,
        depth=pool.depth,
        heads=config.heads,
        dim_head=config.attention.dim_head,
    )


def pool_stack_of(config: Any) -> LayersConfig | None:
    """The layers of that pool."""
    how = pool_of(config)
    return None if how is None else pool_layers(config.pool.dim or config.dim, how, {})


def pool_layers(
    dim: int, config: AttentionPoolConfig, attention: Mapping[str, Any]
) -> LayersConfig:
    """The stack of blocks that the queries pass, or that holds the one attention."""
    keywords: dict[str, Any] = {
        "dim": dim,
        "depth": config.depth,
        "heads": config.heads,
        "attn_dim_head": config.dim_head,
        "cross_attend": True,
        "only_cross": True,
        "cross_attn_dim_context": config.dim_context or dim,
    }
    keywords.update({f"attn_{name}": value for name, value in attention.items()})
    return layers_config(keywords, causal=False, name="AttentionPool")


def _single(stack: LayersConfig) -> Attention:
    """The cross attention of ``stack`` alone."""
    assert stack.cross_attention is not None
    geometry = AttentionGeometry(
        dim=stack.dim, heads=stack.heads, causal=False, dim_context=stack.dim_context
    )
    backend = resolve(stack).backends["cross_attention"][0]
    return Attention(geometry, stack.cross_attention, backend=backend)
