"""The forward pass of one step through a model: a flat batch of all sequences' new tokens over the
cache, or, where the model can't be cached, whole sequences again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.decode.admission import Limits
from xtdist.decode.compiled import CompiledStep
from xtdist.decode.dola import exit_logits
from xtdist.decode.kv_cache import KVStore
from xtdist.decode.scheduler import Work
from xtdist.decode.step_cache import Segment, StepCache, positions_of


class Hidden(NamedTuple):
    """Last-layer hidden states of a sequence from position ``start`` on, the newest last."""

    start: int
    rows: Float[Tensor, "n d"]


@dataclass(frozen=True)
class Rows:
    """What a step gives of one model: fp32 logits of the last 1 + ``drafted`` tokens of every work
    that completes its sequence, in order; where asked for, the same after early layers, and the
    hidden states of each work, None where it was not run."""

    logits: Float[Tensor, "r v"]
    exits: Mapping[int, Float[Tensor, "r v"]] = field(default_factory=dict)
    hidden: Sequence[Hidden | None] = ()


class Runner(Protocol):
    """Computes one model's part of a step."""

    def run(self, work: Sequence[Work], *, hidden: bool = False, exits: Sequence[int] = ()) -> Rows:
        """``exits``: the numbers of blocks, from 1, after which logits are wanted too.

        Tables must have room. Their ``length`` stays: the caller moves it once all models have run.
        """
        ...

    def to_logits(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """Of hidden states that ``run`` gave."""
        ...


class CachedRunner:
    """Runs a model over its own store. ``back``: how far any query of it reads back; None: all.
    ``compiled`` takes the steps that it can."""

    def __init__(
        self,
        model: nn.Module,
        store: KVStore,
        *,
        back: int | None,
        compiled: CompiledStep | None = None,
    ) -> None:
        self.model = model
        self.store = store
        self.back = back
        self.compiled = compiled

    def run(self, work: Sequence[Work], *, hidden: bool = False, exits: Sequence[int] = ()) -> Rows:
        tokens: list[int] = []
        segments: list[Segment] = []
        wanted: list[int] = []
        for w in work:
            computed, start = w.sequence.table.length, len(tokens)
            tokens += w.sequence.tokens[computed : computed + w.count]
            segments.append(Segment(w.sequence.table, start, len(tokens), w.request.context))
            if w.completes:
                wanted += range(len(tokens) - 1 - w.drafted, len(tokens))
        device = next(self.model.parameters()).device
        ids = torch.tensor([tokens], device=device)
        pos = torch.tensor([positions_of(segments)], device=device)
        plain = not hidden and not exits
        if plain and self.compiled is not None and self.compiled.takes(segments):
            with evaluating(self.model):
                return Rows(self.compiled.run(ids, pos=pos, segments=segments).float())
        rows = torch.tensor(wanted, dtype=torch.long, device=device)
        inputs = {"pos": pos, "cache": StepCache(self.store, segments, device, back=self.back)}
        with evaluating(self.model):
            if plain:
                return Rows(self.model(ids, logit_rows=rows, **inputs).float())
            found, states = _with_states(self.model, ids, rows, exits=exits, inputs=inputs)
        parts = [Hidden(s.table.length, states[s.rows]) for s in segments]
        return Rows(found.logits, found.exits, parts)

    def to_logits(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        return to_logits(self.model, hidden)


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

    def run(self, work: Sequence[Work], *, hidden: bool = False, exits: Sequence[int] = ()) -> Rows:
        """Hidden states come all at once, when a work completes its sequence."""
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            found = [
                self._whole(w, device, hidden=hidden, exits=exits) if w.completes else None
                for w in work
            ]
        run = [rows for rows in found if rows is not None]
        if not run:
            none = torch.empty(0, self.num_tokens, device=device)
            return Rows(none, dict.fromkeys(exits, none), [None] * len(work))
        return Rows(
            torch.cat([rows.logits for rows in run]),
            {n: torch.cat([rows.exits[n] for rows in run]) for n in exits},
            [None if rows is None or not hidden else rows.hidden[0] for rows in found],
        )

    def _whole(
        self, work: Work, device: torch.device, *, hidden: bool, exits: Sequence[int]
    ) -> Rows:
        tokens, context = work.sequence.tokens, work.request.context
        inputs: dict[str, Any] = {}
        if context is not None and self.reads_context:
            inputs["context"] = context.rows[None]
        if self.prefix:
            inputs["prefix_attn_len"] = len(work.request.prompt)
        ids = torch.tensor([tokens], device=device)
        rows = torch.arange(len(tokens) - 1 - work.drafted, len(tokens), device=device)
        if not hidden and not exits:
            return Rows(self.model(ids, logit_rows=rows, **inputs).float())
        found, states = _with_states(self.model, ids, rows, exits=exits, inputs=inputs)
        return Rows(found.logits, found.exits, [Hidden(0, states)])

    def to_logits(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        return to_logits(self.model, hidden)


def make_runner(
    model: nn.Module, limits: Limits, store: KVStore, *, compile_sequences: int = 0
) -> Runner:
    """With a cache where the model allows one."""
    if not limits.cache.refused:
        compiled = None
        if compile_sequences:
            compiled = CompiledStep(model, store, sequences=compile_sequences)
        return CachedRunner(model, store, back=limits.cache.window, compiled=compiled)
    return RecomputingRunner(
        model,
        num_tokens=limits.num_tokens,
        reads_context=limits.context_dim is not None,
        prefix=limits.prefix,
    )


def to_logits(model: Any, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
    """What the head makes of hidden states."""
    with evaluating(model):
        logits: Tensor = model.to_logits(hidden)
        return logits


def _with_states(
    model: Any,
    ids: Int[Tensor, "1 n"],
    rows: Int[Tensor, " r"],
    *,
    exits: Sequence[int],
    inputs: Mapping[str, Any],
) -> tuple[Rows, Float[Tensor, "n d"]]:
    """The logits of ``rows``, and hidden states of all tokens."""
    out = model.run(ids, keep=bool(exits), scores=False, **inputs)
    states = out.hidden[0]
    early = {n: exit_logits(model, out.block_hiddens[n - 1][0][rows]) for n in exits}
    return Rows(model.to_logits(states[rows]).float(), early), states


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the while; exactly the modules that were training train afterwards."""
    modules = [model]
    for module in modules:  # every step comes by: much less time than modules() takes
        modules.extend(m for m in module._modules.values() if m is not None)
    training = [m for m in modules if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
