"""The ``KVCache`` that a model sees in one step, and what it keeps of a request's context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from xtdist.decode.kv_cache import KVStore, PageTable, Place, Slots
from xtdist.nn.attention.cache import Kept, Read


@dataclass(eq=False)
class Context:
    """What the sequences of a request read besides themselves, such as an encoded text.

    ``projected``: keys and values of ``rows``, for each model (its store) and cross-attention
    layer; made once, shared by forks and beams, gone with the request.
    """

    rows: Float[Tensor, "j d"]
    projected: dict[tuple[KVStore, int], Kept] = field(default_factory=dict)


@dataclass(frozen=True)
class Segment:
    """The rows ``start:stop`` of a flat batch: the next tokens of the sequence of ``table``."""

    table: PageTable
    start: int
    stop: int
    context: Context | None = None

    @property
    def cached(self) -> int:
        """Tokens that were cached after this step."""
        return self.table.length + self.stop - self.start

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


class StepCache:
    """One forward pass over a flat batch of segments, in one model's store.

    ``back``: how many tokens before the first new one are read; None: all.
    """

    def __init__(
        self,
        store: KVStore,
        segments: Sequence[Segment],
        device: torch.device,
        *,
        back: int | None = None,
    ) -> None:
        self.store = store
        self.segments = segments
        size = store.page_tokens
        slots = [
            (s.table.pages[p // size - s.table.dropped], p % size)
            for s in segments
            for p in range(s.table.length, s.cached)
        ]
        pages, offsets = zip(*slots, strict=True)
        self.slots = Slots(torch.tensor(pages, device=device), torch.tensor(offsets, device=device))
        self.firsts = [0 if back is None else max(0, s.table.length - back) for s in segments]
        self.places = [self._place(s, f) for s, f in zip(segments, self.firsts, strict=True)]

    def update(self, layer: int, new: Kept) -> list[Read]:
        """Store what the layer kept of the new tokens; every token reads its own sequence."""
        self.store.write(layer, self.slots, tuple(t[0].transpose(0, 1) for t in new))
        return [
            Read(rows=segment.rows, kept=self.store.read(layer, place), first=first)
            for segment, place, first in zip(self.segments, self.places, self.firsts, strict=True)
        ]

    def context(self, layer: int, project: Callable[[Float[Tensor, "1 j d"]], Kept]) -> list[Read]:
        """``project`` of each segment's context, made once per request."""
        reads = []
        for segment in self.segments:
            context = segment.context
            assert context is not None, "a sequence without a context met a cross attention"
            key = (self.store, layer)
            if key not in context.projected:
                context.projected[key] = project(context.rows[None])
            reads.append(Read(rows=segment.rows, kept=context.projected[key]))
        return reads

    def _place(self, segment: Segment, first: int) -> Place:
        size, table = self.store.page_tokens, segment.table
        slot, end = first // size, (segment.cached - 1) // size + 1
        pages = table.pages[slot - table.dropped : end - table.dropped]
        return Place(tuple(pages), first - slot * size, segment.cached - slot * size)


def positions_of(segments: Sequence[Segment]) -> list[int]:
    return [p for s in segments for p in range(s.table.length, s.cached)]
