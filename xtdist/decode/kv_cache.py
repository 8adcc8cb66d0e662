"""The paged KV cache: pages with reference counts, tables that map positions to pages, and one
store of keys and values per model.

Pages are numbers. Every model's store has the same pages, so one table serves expert and amateur,
and fork, copy-on-write and free keep them in step.

Shapes: h query heads, hk key/value heads, n new tokens, j cached tokens, d dim per head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xtdist.nn.attention.cache import Kept, Read


@dataclass(eq=False)
class PageTable:
    """Where a sequence's keys and values are. ``length`` tokens are in the cache."""

    pages: list[int] = field(default_factory=list)
    length: int = 0


class KVStore:
    """Keys and values of one model, per layer a tensor ``pages hk page d``.

    A tensor is made when a layer first writes, in the dtype of its keys (so autocast is followed)
    and without touching its memory.
    """

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self.layers: dict[int, tuple[Tensor, ...]] = {}

    def write(
        self,
        layer: int,
        slots: tuple[Int[Tensor, " n"], Int[Tensor, " n"]],
        rows: tuple[Float[Tensor, "n _h _d"], ...],
    ) -> None:
        """Put one row per token at ``slots`` = (page, offset)."""
        if layer not in self.layers:
            self.layers[layer] = tuple(self._allocate(row) for row in rows)
        pages, offsets = slots
        for stored, new in zip(self.layers[layer], rows, strict=True):
            stored[pages, :, offsets] = new

    def read(self, layer: int, table: PageTable, length: int) -> Kept:
        """The first ``length`` cached tokens: a view if they lie in one page, else a gather."""
        pools = self.layers[layer]
        if length <= self.page_tokens:
            page = table.pages[0]
            return tuple(pool[page : page + 1, :, :length] for pool in pools)
        used = -(-length // self.page_tokens)
        index = torch.tensor(table.pages[:used], device=pools[0].device)
        return tuple(self._gather(pool, index, length) for pool in pools)

    def copy(self, source: int, target: int, *, tokens: int) -> None:
        """Copy the first ``tokens`` rows of a page, in every layer."""
        for pools in self.layers.values():
            for pool in pools:
                pool[target, :, :tokens] = pool[source, :, :tokens]

    def _allocate(self, like: Float[Tensor, "n hk d"]) -> Tensor:
        _, heads, dim = like.shape
        return like.new_empty(self.num_pages, heads, self.page_tokens, dim)

    @staticmethod
    def _gather(pool: Tensor, index: Tensor, length: int) -> Tensor:
        rows = pool[index].transpose(0, 1).flatten(1, 2)
        return rows[None, :, :length]


class KVPool:
    """Hands out pages to tables; pages may be shared until one of their owners writes.

    Args:
        num_pages: pages in the pool.
        page_tokens: tokens per page.
        models: number of models whose caches run in step.
    """

    def __init__(self, num_pages: int, page_tokens: int, *, models: int = 1) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self.stores = [KVStore(num_pages, page_tokens) for _ in range(models)]
        self.references = [0] * num_pages
        self.free_pages = list(range(num_pages - 1, -1, -1))

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)

    def reserve(self, wanted: Sequence[tuple[PageTable, int]]) -> bool:
        """Make room for ``count`` more tokens in every table, or change nothing and say False.

        A shared page that would be written to is copied first.
        """
        if not self._fits(wanted):
            return False
        for table, count in wanted:
            self._own_last_page(table)
            for _ in range(self.pages_for(table.length + count) - len(table.pages)):
                table.pages.append(self._take())
        return True

    def fork(self, table: PageTable) -> PageTable:
        """A second table over the same pages; costs no copy until one of the two is written."""
        for page in table.pages:
            self.references[page] += 1
        return PageTable(pages=list(table.pages), length=table.length)

    def release(self, table: PageTable) -> None:
        """Give up all pages of ``table``; it is empty afterwards and may be used again."""
        for page in table.pages:
            self._drop(page)
        table.pages.clear()
        table.length = 0

    def _fits(self, wanted: Sequence[tuple[PageTable, int]]) -> bool:
        """Whether the free pages suffice. Of k tables that share a page and write to it, all but
        the last owner need a copy."""
        needed = 0
        left: dict[int, int] = {}
        for table, count in wanted:
            needed += self.pages_for(table.length + count) - len(table.pages)
            page = self._written_page(table)
            if page is not None:
                owners = left.get(page, self.references[page])
                needed += owners > 1
                left[page] = owners - 1 if owners > 1 else owners
        return needed <= len(self.free_pages)

    def _written_page(self, table: PageTable) -> int | None:
        """The existing page that the next token goes to."""
        slot = table.length // self.page_tokens
        return table.pages[slot] if slot < len(table.pages) else None

    def _own_last_page(self, table: PageTable) -> None:
        page = self._written_page(table)
        if page is None or self.references[page] == 1:
            return
        copy = self._take()
        for store in self.stores:
            store.copy(page, copy, tokens=table.length % self.page_tokens)
        table.pages[table.length // self.page_tokens] = copy
        self._drop(page)

    def _take(self) -> int:
        page = self.free_pages.pop()
        self.references[page] = 1
        return page

    def _drop(self, page: int) -> None:
        self.references[page] -= 1
        if self.references[page] == 0:
            self.free_pages.append(page)


@dataclass(frozen=True)
class Segment:
    """The rows ``start:stop`` of a flat batch: the next tokens of the sequence of ``table``."""

    table: PageTable
    start: int
    stop: int

    @property
    def cached(self) -> int:
        """Tokens in the cache after this step."""
        return self.table.length + self.stop - self.start


class StepCache:
    """The ``KVCache`` of one forward pass over a flat batch of segments, in one model's store."""

    def __init__(self, store: KVStore, segments: Sequence[Segment], device: torch.device) -> None:
        self.store = store
        self.segments = segments
        positions = positions_of(segments)
        size = store.page_tokens
        rows = zip(positions, (s for s in segments for _ in range(s.start, s.stop)), strict=True)
        pages = [s.table.pages[p // size] for p, s in rows]
        self.slots = (
            torch.tensor(pages, device=device),
            torch.tensor([p % size for p in positions], device=device),
        )

    def update(self, layer: int, new: Kept) -> list[Read]:
        """Store what the layer kept of the new tokens; every token reads its own sequence."""
        self.store.write(layer, self.slots, tuple(t[0].transpose(0, 1) for t in new))
        return [
            Read(
                rows=slice(segment.start, segment.stop),
                kept=self.store.read(layer, segment.table, segment.cached),
            )
            for segment in self.segments
        ]

    def context(self, layer: int, project: Callable[[Tensor], Kept]) -> list[Read]:
        raise NotImplementedError("sequences have no context yet")


def positions_of(segments: Sequence[Segment]) -> list[int]:
    return [p for s in segments for p in range(s.table.length, s.cached)]
