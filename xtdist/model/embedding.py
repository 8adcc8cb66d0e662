"""From token ids to the vectors that enter the stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xtdist.model.config import ModelConfig
from xtdist.nn.embedding import TokenEmbedding
from xtdist.nn.linear import Linear
from xtdist.nn.norm import LayerNormConfig


class EmbeddingKeywords(TypedDict, total=False):
    """Optional inputs of the embedding.

    sum_embeds: (b, n, e) added to the token embedding. embed_ids: for each further table ids
    (b, n). pos: (b, n) or (n,), or floating (b|1, n, e): position vectors instead of the model's.
    prepend_embeds, prepend_mask: (b, p, e), (b, p) vectors before those of the tokens.
    token_emb_kwargs: for an embedding module that the caller gave.
    """

    sum_embeds: Float[Tensor, "b n e"] | None
    embed_ids: Mapping[str, Int[Tensor, "b n"]]
    prepend_embeds: Float[Tensor, "b p e"] | None
    prepend_mask: Bool[Tensor, "b p"] | None
    token_emb_kwargs: Mapping[str, Any]


class EmbeddingTail(nn.Module):
    """What happens to token and position vectors before the stack: further tables are added, the
    sum is normed, put behind prepended vectors and projected to the model's width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, self.dropout = config.emb_dim, config.emb_dropout
        self.gradient = config.embedding.gradient
        self.tables = nn.ModuleDict(
            {table.name: TokenEmbedding(table.tokens, dim) for table in config.embedding.tables}
        )
        norm = LayerNormConfig(unit_offset=False)
        self.norm = norm.build(dim) if config.embedding.norm else None
        self.proj = Linear(dim, config.dim, bias=True) if dim != config.dim else None

    def forward(
        self, h: Float[Tensor, "b n e"], given: EmbeddingKeywords
    ) -> tuple[Float[Tensor, "b s d"], Float[Tensor, "b s e"]]:
        """The vectors for the stack, and what they were before dropout and projection."""
        for name, table in self.tables.items():
            h = h + table(given["embed_ids"][name])
        added = given.get("sum_embeds")
        h = h if added is None else h + added
        h = h if self.norm is None else self.norm(h)
        prepended = given.get("prepend_embeds")
        h = h if prepended is None else torch.cat((prepended.to(h.dtype), h), dim=1)
        if self.gradient < 1:
            h = h * self.gradient + h.detach() * (1 - self.gradient)
        out = F.dropout(h, self.dropout) if self.training and self.dropout else h
        return out if self.proj is None else self.proj(out), h
