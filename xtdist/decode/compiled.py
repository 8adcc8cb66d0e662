"""Decode steps as one compiled graph: each sequence brings one token and lies in one page.

Nothing but the number of sequences shapes the graph; lengths and places are its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.decode.admission import Limits
from xtdist.decode.kv_cache import KVPool, KVStore
from xtdist.decode.step_cache import Segment
from xtdist.nn.attention.cache import Kept, Read

MOST_GRAPHS = 256
"""Of one model: as many numbers of sequences, each with a few shapes that torch treats apart."""


@dataclass(frozen=True)
class Lane:
    """What a step needs of one sequence: its page in every layer, as views of the store, where in
    it the new token goes, and how many tokens it then holds."""

    pages: dict[int, Kept]
    slot: Int[Tensor, "1"]
    length: int


class LaneCache:
    """The ``KVCache`` of a compiled step. Every lane's page is an input of its own, so that no page
    number is part of the graph."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = lanes

    def update(self, layer: int, new: Kept) -> list[Read]:
        """Store what the layer kept of each lane's token; it reads its own sequence."""
        reads = []
        for row, lane in enumerate(self.lanes):
            rows, pages = slice(row, row + 1), lane.pages[layer]
            for page, kept in zip(pages, new, strict=True):
                page.index_copy_(2, lane.slot, kept[:, :, rows])
            stored = tuple(page[:, :, : lane.length] for page in pages)
            reads.append(Read(rows=rows, kept=stored))
        return reads

    def context(self, layer: int, project: Callable[[Float[Tensor, "1 j d"]], Kept]) -> list[Read]:
        """Refused before: the engine compiles no model that reads a context."""
        raise AssertionError("a compiled step reads no context")


class CompiledStep:
    """A model's forward pass over at most ``sequences`` lanes, compiled at the first step with each
    number of them (the better part of a minute for 8 layers on a CPU; torch keeps it on disk for
    the next process)."""

    def __init__(self, model: nn.Module, store: KVStore, *, sequences: int) -> None:
        self.model, self.store, self.sequences = model, store, sequences
        self._forward = torch.compile(model.forward, dynamic=True, fullgraph=True)
        self._seen: set[int] = set()

    def takes(self, segments: Sequence[Segment]) -> bool:
        """Whether a step over ``segments`` is one for the graph."""
        return (
            len(segments) <= self.sequences
            and bool(self.store.layers)
            and all(s.stop - s.start == 1 and s.table.length > 1 for s in segments)
        )

    def run(
        self, ids: Int[Tensor, "1 r"], *, pos: Int[Tensor, "1 r"], segments: Sequence[Segment]
    ) -> Float[Tensor, "r v"]:
        """Logits of all tokens.

        Raises:
            ConfigError: torch can't compile this model's step.
        """
        # By page: torch compiles a graph for each order of the pages in memory.
        order = sorted(range(len(segments)), key=lambda row: segments[row].table.pages[0])
        moved = order != list(range(len(order)))
        if moved:
            ids, pos = ids[:, order], pos[:, order]
        lanes = [self._lane(segments[row], ids.device) for row in order]
        logits = self._logits(ids, {"pos": pos, "cache": LaneCache(lanes)})
        return logits[torch.tensor(order).argsort()] if moved else logits

    def _logits(self, ids: Tensor, inputs: dict[str, Any]) -> Tensor:
        rows = torch.arange(ids.shape[1], device=ids.device)
        logits: Tensor
        if len(rows) in self._seen:
            logits = self._forward(ids, logit_rows=rows, **inputs)
            return logits
        try:
            with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
                logits = self._forward(ids, logit_rows=rows, **inputs)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as e:
            reason = str(e).strip().splitlines()[0]
            raise ConfigError(
                f"compile_sequences: torch can't compile a step of this model ({reason}); leave it "
                "out"
            ) from e
        self._seen.add(len(rows))
        return logits

    def _lane(self, segment: Segment, device: torch.device) -> Lane:
        table, length = segment.table, segment.table.length
        page = slice(table.pages[0], table.pages[0] + 1)
        layers = self.store.layers.items()
        pages = {layer: tuple(pool[page] for pool in pools) for layer, pools in layers}
        return Lane(pages, torch.tensor([length], device=device), length + 1)


def check_compiles(limits: Limits, pool: KVPool, *, longest: int, name: str, on_cpu: bool) -> None:
    """Refuse to compile what would never run compiled.

    Raises:
        ConfigError: a model without a cache, or with cross attention; sequences that lie in several
            pages; on CPU, no C++ compiler.
    """
    why = ""
    if limits.cache.refused:
        why = f"{name} has no cache ({limits.cache.refused.strip()})"
    elif limits.context_dim is not None:
        why = f"{name} reads a context, which the graph can't"
    elif pool.page_tokens < longest:
        why = (
            f"a page holds {pool.page_tokens} tokens and a sequence {longest}, but a compiled step "
            "reads one page of each; set page_tokens to the longest sequence, or "
            "max_sequence_tokens to a page"
        )
    elif on_cpu and not _has_compiler():
        why = "no C++ compiler was found; install g++"
    if why:
        raise ConfigError(f"compile_sequences: {why}; or leave it out")


def _has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False
