"""The forward pass of one step through a model: a flat batch of all sequences' new tokens over the
cache, or, where the model can't be cached, whole sequences again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.decode.kv_cache import KVStore
from xtdist.decode.scheduler import Work
from xtdist.decode.step_cache import Segment, StepCache, positions_of


class Runner(Protocol):
    """Computes one model's part of a step."""

    def run(self, work: Sequence[Work]) -> Float[Tensor, "r v"]:
        """fp32 logits of the last token of every work that completes its sequence, in order.

        Tables must have room. Their ``length`` stays: the caller moves it once all models have run.
        """


class CachedRunner:
    """Runs a model over its own store. ``back``: how far any query of it reads back; None: all."""

    def __init__(self, model: nn.Module, store: KVStore, *, back: int | None) -> None:
        self.model = model
        self.store = store
        self.back = back

    def run(self, work: Sequence[Work]) -> Float[Tensor, "r v"]:
        tokens: list[int] = []
        segments: list[Segment] = []
        wanted: list[int] = []
        for w in work:
            computed, start = w.sequence.table.length, len(tokens)
            tokens += w.sequence.tokens[computed : computed + w.count]
            segments.append(Segment(w.sequence.table, start, len(tokens), w.request.context))
            if w.completes:
                wanted.append(len(tokens) - 1)
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            logits: Tensor = self.model(
                torch.tensor([tokens], device=device),
                pos=torch.tensor([positions_of(segments)], device=device),
                cache=StepCache(self.store, segments, device, back=self.back),
                logit_rows=torch.tensor(wanted, dtype=torch.long, device=device),
            )
        return logits.float()


class RecomputingRunner:
    """Runs whole sequences, one at a time: exact for any causal model, and slow.

    ``prefix``: a prefix decoder's, which is the prompt: its tokens see each other (1910.10683).
    """

    def __init__(
        self, model: nn.Module, *, num_tokens: int, reads_context: bool, prefix: bool = False
    ) -> None:
        self.model = model
        self.num_tokens = num_tokens
        self.reads_context = reads_context
        self.prefix = prefix

    def run(self, work: Sequence[Work]) -> Float[Tensor, "r v"]:
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            rows = [self._last_row(w, device) for w in work if w.completes]
        return torch.cat(rows) if rows else torch.empty(0, self.num_tokens, device=device)

    def _last_row(self, work: Work, device: torch.device) -> Float[Tensor, "1 v"]:
        tokens, context = work.sequence.tokens, work.request.context
        inputs: dict[str, Any] = {}
        if context is not None and self.reads_context:
            inputs["context"] = context.rows[None]
        if self.prefix:
            inputs["prefix_attn_len"] = len(work.request.prompt)
        logits: Tensor = self.model(
            torch.tensor([tokens], device=device),
            logit_rows=torch.tensor([len(tokens) - 1], device=device),
            **inputs,
        )
        return logits.float()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the while; exactly the modules that were training train afterwards."""
    training = [m for m in model.modules() if m.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
