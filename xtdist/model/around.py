"""The parts before the stack: embedding, memory and class tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xtdist.model.batch_cache import BatchCache
from xtdist.model.config import ModelConfig
from xtdist.model.embedding import EmbeddingTail
from xtdist.model.layers import Layers
from xtdist.model.outputs import ModelInputs
from xtdist.model.parts import ClsPoolConfig
from xtdist.model.slots import Slots
from xtdist.model.stack import StackInputs
from xtdist.model.upkeep import Upkeep
from xtdist.nn.embedding import DeepEmbedding, TokenEmbedding, unit_vectors
from xtdist.nn.memory import LearnedTokens
from xtdist.nn.position.config import LearnedConfig, SinusoidalConfig


class Around(Upkeep):
    """The modules before a model's stack, each used inside its own call only, and the steps
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
        if isinstance(config.pool, ClsPoolConfig):
            self.cls_tokens = LearnedTokens(config.pool.tokens, config.dim)

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
        """Those of the model's absolute positions."""
        assert self.position_embedding is not None
        vectors = self.position_embedding(absolute_positions(x, inputs, after=after))
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
            cls=pool.tokens if isinstance(pool, ClsPoolConfig) else 0,
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


def absolute_positions(
    x: Tensor, inputs: Mapping[str, Any], *, after: int = 0
) -> Int[Tensor, "#b n"]:
    """Positions of ``x`` (b, n, …) behind ``after`` others by ``pos``, ``seq_start_pos`` and
    ``documents``: left padding does not count, and each packed document starts anew."""
    pos, start = inputs.get("pos"), inputs.get("seq_start_pos")
    documents = inputs.get("documents")
    if pos is None and documents is not None:
        return within_documents(documents, start)
    if pos is None:
        pos = torch.arange(after, after + x.shape[1], device=x.device)
    pos = (pos if pos.ndim == 2 else pos[None]).long()  # narrower ones can't index
    return pos if start is None else (pos - start[:, None]).clamp(min=0)


def within_documents(
    documents: Int[Tensor, "b n"], start: Int[Tensor, " b"] | None
) -> Int[Tensor, "b n"]:
    """0, 1, 2 … along each run of one number, from ``start`` on; 0 before."""
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    same = documents[:, 1:] == documents[:, :-1]
    first = place.masked_fill(torch.nn.functional.pad(same, (1, 0)), 0).cummax(dim=1).values
    if start is not None:
        first = torch.maximum(first, start[:, None])
    return (place - first).clamp(min=0)


def given_modules(
    config: ModelConfig, *, token_emb: nn.Module | None, to_logits: nn.Module | None
) -> ModelConfig:
    """``config`` says which parts the caller gives."""
    if token_emb is not None:
        config = replace(config, embedding=replace(config.embedding, given=True))
    if to_logits is not None:
        config = replace(config, head=replace(config.head, given=True))
    return config
