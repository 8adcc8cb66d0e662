"""The parts around the stack: what stands before it and what is taken from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.model.batch_cache import BatchCache, LaterLayers
from xtdist.model.config import ModelConfig
from xtdist.model.embedding import EmbeddingTail
from xtdist.model.head import Mixture, NextEmbedding, sigsoftmax, squeezed
from xtdist.model.layers import Layers
from xtdist.model.loops import Looped, LoopOutput, Recycling
from xtdist.model.outputs import ModelInputs, ModelOutput
from xtdist.model.parts import LoopedConfig, RecyclingConfig
from xtdist.model.slots import Slots
from xtdist.model.stack import StackInputs, StackOutput
from xtdist.model.upkeep import Upkeep
from xtdist.nn.embedding import DeepEmbedding, Head, TokenEmbedding, unit_vectors
from xtdist.nn.memory import LearnedTokens
from xtdist.nn.position.config import LearnedConfig, SinusoidalConfig


class Around(Upkeep):
    """The modules of a model around its stack, each used inside its own call only, and the steps
    of a forward pass that they are used in."""

    config: ModelConfig
    layers: Layers

    def build_embedding(self) -> None:
        """The modules before the stack."""
        config, dim = self.config, self.config.emb_dim
        unit = config.embedding.unit
        self.token_embedding: nn.Module = nn.Identity()
        if not config.embedding.given:
            self.token_embedding = TokenEmbedding(config.num_tokens, dim, unit=unit)
        self.position_embedding: nn.Module | None = None
        if isinstance(config.position, LearnedConfig):
            self.position_embedding = config.position.build(config.max_seq_len, dim)
        elif isinstance(config.position, SinusoidalConfig):
            self.position_embedding = config.position.build(dim)
        self.embedding_tail = EmbeddingTail(config)
        self.deep_embedding = self.memory_tokens = self.cls_tokens = None
        if config.embedding.deep:
            self.deep_embedding = DeepEmbedding(config.num_tokens, config.depth, config.dim)
        if config.memory_tokens is not None:
            self.memory_tokens = LearnedTokens(config.memory_tokens.tokens, config.dim)
        if config.pool is not None and config.pool.kind == "cls":
            self.cls_tokens = LearnedTokens(config.pool.tokens, config.dim)

    def build_head(self) -> None:
        """The modules behind the stack."""
        config, head, dim = self.config, self.config.head, self.config.dim
        self.loop: Recycling | Looped | None = None
        if isinstance(config.loop, RecyclingConfig):
            self.loop = Recycling(dim, config.loop)
        elif isinstance(config.loop, LoopedConfig):
            self.loop = Looped(dim, config.loop)
        self.mixture = None if head.mixture is None else Mixture(dim, head.mixture)
        self.next_embedding = NextEmbedding(dim, config.emb_dim) if head.next_embedding else None
        count = head.dim or config.num_tokens
        self.head: nn.Module | None = None
        if head.heads > 1:
            self.head = nn.ModuleList(Head(count, dim) for _ in range(head.heads))
        elif head.output == "logits" and not config.tie_embedding and not head.given:
            self.head = Head(count, dim)

    def embed(
        self, x: Tensor, inputs: ModelInputs, given: StackInputs, grown: BatchCache | None
    ) -> tuple[Float[Tensor, "b s d"], Float[Tensor, "b s e"]]:
        """The vectors for the stack, and what they were before dropout and projection."""
        h = self.token_embedding(x, **(inputs.get("token_emb_kwargs") or {}))
        pos = inputs.get("pos")
        if pos is not None and pos.is_floating_point():
            h = h + pos
        elif self.position_embedding is not None:
            h = h + self.position_vectors(x, inputs, 0 if grown is None else grown.tokens)
        return cast(tuple[Tensor, Tensor], self.embedding_tail(h, inputs))

    def position_vectors(
        self, x: Tensor, inputs: ModelInputs, after: int
    ) -> Float[Tensor, "b n e"]:
        """Those of the model's absolute positions; left padding does not count."""
        assert self.position_embedding is not None
        pos, start = inputs.get("pos"), inputs.get("seq_start_pos")
        if pos is None:
            pos = torch.arange(after, after + x.shape[1], device=x.device)
        pos = pos if pos.ndim == 2 else pos[None]
        if start is not None:
            pos = (pos - start[:, None]).clamp(min=0)
        vectors = self.position_embedding(pos)
        unit = self.config.embedding.unit and self.config.position.kind == "learned"
        return unit_vectors(vectors) if unit else cast(Tensor, vectors)

    def place(
        self, h: Float[Tensor, "b s d"], x: Tensor, inputs: ModelInputs, given: StackInputs
    ) -> tuple[Tensor, StackInputs, Slots | None, Bool[Tensor, "b s"] | None]:
        """Class and memory tokens put before and between the others, the inputs spread likewise;
        and which of the sequence's vectors are real."""
        if self.config.shift_mem_down and given.memories:
            by = self.config.shift_mem_down % len(given.memories)
            shift = given.memories[by:], given.memories[:by]
            given = replace(given, memories=(*shift[0], *shift[1]))
        if self.deep_embedding is not None:
            given = replace(given, factors=self.deep_embedding(x).unbind())
        prepended = h.shape[1] - x.shape[1]
        if not prepended and self.cls_tokens is None and self.memory_tokens is None:
            return h, given, None, given.mask
        memory, pool = self.config.memory_tokens, self.config.pool
        slots = Slots(
            x.shape[1],
            prepended=prepended,
            cls=pool.tokens if pool is not None and pool.kind == "cls" else 0,
            memories=0 if memory is None else memory.tokens,
            every=None if memory is None else memory.every,
        )
        b, real = len(h), given.mask
        before = inputs.get("prepend_mask")
        if prepended and (real is not None or before is not None):
            whole = torch.ones(b, h.shape[1], dtype=torch.bool, device=h.device)
            before = whole[:, :prepended] if before is None else before
            real = torch.cat((before, whole[:, prepended:] if real is None else real), dim=1)
        cls = None if self.cls_tokens is None else self.cls_tokens(b).to(h.dtype)
        learned = None if self.memory_tokens is None else self.memory_tokens(b).to(h.dtype)
        return (
            slots.join(h, cls, learned),
            slots.inputs(given, real, causal=self.config.causal),
            slots,
            real,
        )

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
        if pool is not None and pool.kind == "cls":
            assert cls is not None
            hidden = cls[:, 0] if pool.tokens == 1 else cls
        elif pool is not None:
            hidden = mean_of_real(tokens, real)
        return ModelOutput(
            hidden=self.with_all_parts(hidden),
            tokens=tokens,
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

    def with_all_parts(self, hidden: Float[Tensor, "b *s d"]) -> Float[Tensor, "b *s d"]:
        """The same, and in training a head that no loss may ask for gets a gradient of zero: every
        rank then uses every parameter in every step."""
        if self.next_embedding is None or not self.training:
            return hidden
        return hidden + 0.0 * self.next_embedding(hidden[:, :1]).sum()

    def all_logits(self, hidden: Float[Tensor, "... d"], keywords: Mapping[str, Any]) -> Any:
        """Those of every head, behind mixture, sigsoftmax and squeezing."""
        if self.head is None and not self.config.tie_embedding:
            raise ConfigError("head: the model has none (return_only_embed); use its hidden states")
        shares: Tensor | None = None
        hidden = hidden * self.config.logit_scale
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


def given_modules(
    config: ModelConfig, *, token_emb: nn.Module | None, to_logits: nn.Module | None
) -> ModelConfig:
    """``config`` says which parts the caller gives."""
    if token_emb is not None:
        config = replace(config, embedding=replace(config.embedding, given=True))
    if to_logits is not None:
        config = replace(config, head=replace(config.head, given=True))
    return config


def mean_of_real(x: Float[Tensor, "b s d"], real: Tensor | None) -> Float[Tensor, "b d"]:
    """The mean over the real tokens; 0 where there are none."""
    if real is None:
        return reduce(x, "b s d -> b d", "mean")
    count = real.sum(dim=1, keepdim=True).clamp(min=1)
    return x.masked_fill(~real[..., None], 0.0).sum(dim=1) / count
