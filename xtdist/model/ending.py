"""The parts behind the stack: its passes, what is taken from it, pooling and logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xtdist.config import ConfigError, to_mapping
from xtdist.model.batch_cache import BatchCache, LaterLayers
from xtdist.model.config import ModelConfig
from xtdist.model.head import Mixture, NextEmbedding, sigsoftmax, squeezed
from xtdist.model.layers import Layers
from xtdist.model.loops import Looped, LoopOutput, Recycling
from xtdist.model.outputs import ModelInputs, ModelOutput
from xtdist.model.parts import (
    ClsPoolConfig,
    LoopedConfig,
    MeanPoolConfig,
    QueriesPoolConfig,
    RecyclingConfig,
)
from xtdist.model.pool import AttentionPool, pool_of
from xtdist.model.slots import Slots
from xtdist.model.stack import StackInputs, StackOutput
from xtdist.model.upkeep import Upkeep
from xtdist.nn.embedding import Head, HeadFunction
from xtdist.nn.linear import product


class Ending(Upkeep):
    """The modules behind a model's stack, each used inside its own call only, and the steps of a
    forward pass that they are used in."""

    config: ModelConfig
    layers: Layers
    token_embedding: nn.Module

    def build_head(self) -> None:
        """The modules behind the stack."""
        config, head, dim = self.config, self.config.head, self.config.dim
        self.loop: Recycling | Looped | None = None
        if isinstance(config.loop, RecyclingConfig):
            self.loop = Recycling(dim, config.loop)
        elif isinstance(config.loop, LoopedConfig):
            self.loop = Looped(dim, config.loop)
        self.attention_pool: AttentionPool | None = None
        how = pool_of(config)
        if how is not None and isinstance(config.pool, QueriesPoolConfig):
            self.attention_pool = AttentionPool(config.pool.dim or dim, **to_mapping(how))
        self.mixture = None if head.mixture is None else Mixture(dim, head.mixture)
        self.next_embedding = NextEmbedding(dim, config.emb_dim) if head.next_embedding else None
        count = head.dim or config.num_tokens
        self.head: nn.Module | None = None
        if head.heads > 1:
            self.head = nn.ModuleList(Head(count, dim) for _ in range(head.heads))
        elif head.output == "logits" and not config.tie_embedding and not head.given:
            self.head = Head(count, dim)

    def passes(
        self, h: Float[Tensor, "b l d"], given: StackInputs, inputs: ModelInputs
    ) -> LoopOutput:
        """The stack, as often as the model says."""
        if self.loop is None:
            stack = self.layers.run(h, given)
            return LoopOutput(stack=stack, hidden=stack.hidden)
        kinds = self.config.kinds
        attentions = sum(kinds[i] != "f" for i in self.config.execution)

        def run(x: Tensor, step: int) -> StackOutput:
            if given.cache is None or step == 0:
                return self.layers.run(x, given)
            cache = LaterLayers(given.cache, step * attentions)
            return self.layers.run(x, replace(given, cache=cache))

        if isinstance(self.loop, Recycling):
            return self.loop.run(h, run, steps=inputs.get("recycle_steps"))
        threshold = None if self.training else self.loop.config.exit_threshold
        if inputs.get("looped_inference"):
            threshold = inputs.get("looped_exit_prob_threshold", 0.9)
        steps = inputs.get("looped_steps")
        if steps is not None and inputs.get("looped_inference"):
            threshold = None
        steps = steps or inputs.get("max_looped_steps")
        return self.loop.run(h, run, steps=steps, threshold=threshold)

    def taken(
        self,
        passes: LoopOutput,
        *,
        initial: Tensor,
        slots: Slots | None,
        given: StackInputs,
        real: Tensor | None,
    ) -> ModelOutput:
        """The tokens, the memories and the pooled output among what the stack gave."""

        def of_sequence(x: Tensor) -> Tensor:
            return x if slots is None else slots.split(x)[0]

        cls = memory = None
        tokens = hidden = passes.hidden
        if slots is not None:
            tokens, cls, memory = slots.split(passes.hidden)
            hidden = tokens
        pool, exits = self.config.pool, passes.exits
        if isinstance(pool, ClsPoolConfig):
            assert cls is not None
            hidden = cls[:, 0] if pool.tokens == 1 else cls
        elif isinstance(pool, MeanPoolConfig):
            hidden = mean_of_real(tokens, real)
        hidden = self.with_all_parts(hidden)
        return ModelOutput(
            hidden=hidden,
            tokens=tokens,
            pooled=self.pooled(hidden, real) if self._pools(given) else None,
            initial=initial,
            stack=passes.stack,
            mask=given.mask,
            hiddens=tuple(map(of_sequence, passes.stack.hiddens)),
            block_hiddens=tuple(map(of_sequence, passes.stack.block_hiddens)),
            memory=memory,
            pass_hiddens=tuple(map(of_sequence, passes.hiddens)),
            exit_logits=tuple(map(of_sequence, passes.exit_logits)),
            exits=None if exits is None else of_sequence(exits[..., None])[..., 0],
        )

    def _pools(self, given: StackInputs) -> bool:
        """Whether this pass has an output that queries read: always in an encoder; in a causal
        stack where intermediates are kept and no earlier tokens are missing."""
        if self.attention_pool is None or not self.config.causal:
            return self.attention_pool is not None
        grown = isinstance(given.cache, BatchCache) and given.cache.rows == 0
        return given.keep and (given.cache is None or grown)

    def pooled(
        self, tokens: Float[Tensor, "b s d"], real: Bool[Tensor, "b s"] | None
    ) -> Float[Tensor, "b p e"]:
        """What the pool's queries read of the tokens."""
        assert self.attention_pool is not None
        pooled = cast(Tensor, self.attention_pool(tokens, real))
        if not self.training or self.config.causal or self.config.head.output == "hidden":
            return pooled
        logits = self.to_logits(tokens[:, :1])  # they stand beside what is given back
        several = logits if isinstance(logits, tuple) else (logits,)
        return pooled + 0.0 * torch.stack([part.sum() for part in several]).sum()

    def with_all_parts(self, hidden: Float[Tensor, "b *s d"]) -> Float[Tensor, "b *s d"]:
        """The same, and in training a part that no loss may ask for gets a gradient of zero: every
        rank then uses every parameter in every step."""
        if not self.training:
            return hidden
        whole = hidden
        if self.next_embedding is not None:
            whole = whole + 0.0 * self.next_embedding(hidden[:, :1]).sum()
        if self.attention_pool is not None:
            whole = whole + 0.0 * self.attention_pool(hidden[:, :1]).sum()
        return whole

    def to_logits(self, hidden: Float[Tensor, "... d"], **keywords: Any) -> Any:
        """Logits of hidden states: log-probabilities from a mixture of softmaxes, a tuple where
        there are several heads. ``keywords`` are for a head that was given."""
        if self.config.head.is_linear:
            return self.apply_head(hidden, product)
        return self.all_logits(hidden, keywords)

    def apply_head(self, hidden: Float[Tensor, "... d"], function: HeadFunction) -> Tensor:
        """``function(hidden, weight)`` with the head's weight (v, d).

        It runs inside the one call of the module that owns the weight, so that a loss can work
        through the vocabulary in pieces while the weight of a sharded model (ZeRO-3) is gathered
        once, on every rank alike.

        Raises:
            ConfigError: the head is more than one matrix (``config.head.is_linear``).
        """
        if not self.config.head.is_linear:
            raise ConfigError("head: more than one matrix; take the loss of to_logits(hidden)")
        if self.config.output_scale != 1.0:
            hidden = hidden * self.config.output_scale
        owner = self.token_embedding if self.head is None else self.head
        return cast(Tensor, owner(hidden, function))

    def all_logits(self, hidden: Float[Tensor, "... d"], keywords: Mapping[str, Any]) -> Any:
        """Those of every head, behind mixture, sigsoftmax and squeezing."""
        if self.head is None and not self.config.tie_embedding:
            raise ConfigError("head: the model has none (return_only_embed); use its hidden states")
        shares: Tensor | None = None
        hidden = hidden * self.config.output_scale
        if self.mixture is not None:
            hidden, shares = self.mixture(hidden)
        heads = self.head if isinstance(self.head, nn.ModuleList) else [self.head]
        found = []
        for head in heads:
            owner = self.token_embedding if head is None else head
            logits = owner(hidden, **keywords)
            logits = sigsoftmax(logits) if self.config.head.sigsoftmax else logits
            logits = logits if shares is None else Mixture.mix(logits, shares)
            squeeze = self.config.head.squeeze and logits.shape[-1] == 1
            found.append(squeezed(logits) if squeeze else logits)
        return tuple(found) if len(found) > 1 else found[0]


def mean_of_real(x: Float[Tensor, "b s d"], real: Tensor | None) -> Float[Tensor, "b d"]:
    """The mean over the real tokens; 0 where there are none."""
    if real is None:
        return reduce(x, "b s d -> b d", "mean")
    count = real.sum(dim=1, keepdim=True).clamp(min=1)
    return x.masked_fill(~real[..., None], 0.0).sum(dim=1) / count
