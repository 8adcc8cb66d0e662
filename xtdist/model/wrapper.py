"""Token ids in, logits out."""

from __future__ import annotations

from typing import Any, Unpack, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.model.caching import cache_spec
from xtdist.model.compat import model_config
from xtdist.model.config import ModelConfig
from xtdist.model.inputs import StackKeywords, stack_inputs
from xtdist.model.layers import Layers
from xtdist.model.outputs import LogitsAndEmbeddings, ModelInputs
from xtdist.model.stack import StackOutput
from xtdist.nn.attention.cache import CacheSpec
from xtdist.nn.embedding import Head, HeadFunction, TokenEmbedding
from xtdist.nn.linear import initialize
from xtdist.nn.position.config import LearnedConfig


class TransformerWrapper(nn.Module):
    """Embedding, layers, head. ``build_model`` makes one from a config; this signature is
    x-transformers'. ``config`` describes the model completely either way.

    Example:
        >>> net = TransformerWrapper(
        ...     num_tokens=256, max_seq_len=1024, attn_layers=Decoder(dim=512, depth=6, heads=8)
        ... )
        >>> net(torch.randint(0, 256, (1, 1024))).shape
        torch.Size([1, 1024, 256])
    """

    def __init__(
        self, *, num_tokens: int, max_seq_len: int, attn_layers: Layers, **keywords: Any
    ) -> None:
        """Raises TypeError for an unknown keyword, ConfigError for a value that can't be."""
        sizes = {"num_tokens": num_tokens, "max_seq_len": max_seq_len}
        super().__init__()
        self._assemble(model_config(attn_layers.config, {**sizes, **keywords}), attn_layers)

    @classmethod
    def from_config(cls, config: ModelConfig) -> TransformerWrapper:
        """The model that ``config`` describes, with start values from torch's default generator."""
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._assemble(config, Layers(config.layers))
        return model

    def _assemble(self, config: ModelConfig, layers: Layers) -> None:
        if not config.num_tokens or not config.max_seq_len:
            raise ConfigError(
                f"model.num_tokens={config.num_tokens}, model.max_seq_len={config.max_seq_len}: a "
                "model is built with both; give the size of the vocabulary and the longest sequence"
            )
        self.config = config
        self.num_tokens, self.max_seq_len = config.num_tokens, config.max_seq_len
        self.token_embedding = TokenEmbedding(config.num_tokens, config.dim)
        self.position_embedding = None
        if isinstance(config.position, LearnedConfig):
            self.position_embedding = config.position.build(config.max_seq_len, config.dim)
        self.layers = layers
        self.head = None if config.tie_embedding else Head(config.num_tokens, config.dim)

    def forward(
        self,
        x: Int[Tensor, "b n"],
        *,
        logit_rows: Int[Tensor, " m"] | None = None,
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        **inputs: Unpack[ModelInputs],
    ) -> Float[Tensor, "b n v"] | LogitsAndEmbeddings:
        """Logits (b, n, v) of token ids ``x``; further inputs are described in ``ModelInputs``.

        logit_rows: wanted rows of the flattened (b n) positions; the logits are then (m, v).
        return_embeddings: the hidden states (b, n, d) that the head reads, instead of logits.
        """
        hidden = self.hidden(x, **inputs)
        if return_embeddings:
            return hidden
        if logit_rows is not None:
            return self.to_logits(rearrange(hidden, "b n d -> (b n) d")[logit_rows])
        if return_logits_and_embeddings:
            return LogitsAndEmbeddings(self.to_logits(hidden), hidden)
        return self.to_logits(hidden)

    def hidden(
        self, x: Int[Tensor, "b n"], **inputs: Unpack[ModelInputs]
    ) -> Float[Tensor, "b n d"]:
        """The final hidden states, which ``to_logits`` turns into logits; raises as ``run``."""
        return self.run(x, **inputs).hidden

    def run(
        self, x: Int[Tensor, "b n"], *, keep: bool = False, **inputs: Unpack[ModelInputs]
    ) -> StackOutput:
        """Everything below the head: hidden states and auxiliary losses; ``keep`` adds attentions
        and the hidden states on the way.

        Raises:
            ValueError: shapes, types or a length that the model can't take.
        """
        sum_embeds = inputs.pop("sum_embeds", None)
        self._check(x, inputs)
        given = stack_inputs(x, self.config, cast(StackKeywords, inputs), keep=keep)
        h = self.token_embedding(x)
        if self.position_embedding is not None:
            pos = given.pos
            if pos is None:
                pos = torch.arange(x.shape[1], device=x.device)
            h = h + self.position_embedding(pos if pos.ndim == 2 else pos[None])
        if sum_embeds is not None:
            h = h + sum_embeds
        h = F.dropout(h, self.config.emb_dropout, self.training)
        return self.layers.run(h, given)

    def to_logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Logits of hidden states."""
        return self.apply_head(hidden, F.linear)

    def apply_head(self, hidden: Float[Tensor, "... d"], function: HeadFunction) -> Tensor:
        """``function(hidden, weight)`` with the head's weight (v, d).

        It runs inside the one call of the module that owns the weight, so that a loss can work
        through the vocabulary in pieces while the weight of a sharded model (ZeRO-3) is gathered
        once, on every rank alike.
        """
        if self.config.logit_scale != 1.0:
            hidden = hidden * self.config.logit_scale
        owner = self.token_embedding if self.head is None else self.head
        return owner(hidden, function)

    def cache_spec(self) -> CacheSpec:
        """What a key/value store must hold for each token."""
        return cache_spec(self.config)

    def _check(self, x: Tensor, inputs: ModelInputs) -> None:
        if x.ndim != 2 or x.is_floating_point() or x.dtype == torch.bool:
            raise ValueError(f"x: got {x.dtype} {tuple(x.shape)}; give token ids of shape (b, n)")
        absolute = self.position_embedding is not None and inputs.get("pos") is None
        if absolute and x.shape[1] > self.max_seq_len:
            raise ValueError(
                f"x: {x.shape[1]} tokens; {self.config.position.kind} positions end at "
                f"max_seq_len={self.max_seq_len}"
            )


def build_model(
    config: ModelConfig, *, generator: torch.Generator | None = None
) -> TransformerWrapper:
    """The model of ``config`` on the CPU in fp32, its start values drawn from ``generator`` alone
    (torch's default generator without one).

    Raises:
        ConfigError: no vocabulary size.
    """
    if generator is None:
        return TransformerWrapper.from_config(config)
    with torch.device("meta"):
        model = TransformerWrapper.from_config(config)
    model.to_empty(device="cpu")
    initialize(model, generator)
    return model
