"""The paged KV cache: pages with reference counts, tables that map positions to pages, and one
store per model.

Pages are numbers. Every model's store has the same pages, so one table serves expert and amateur,
and fork, copy-on-write and free keep them in step.

Shapes: h heads, n new tokens, j cached tokens, d dim per head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.decode.prefix_cache import Blocks, PrefixCache
from xtdist.nn.attention.cache import Kept


@dataclass(eq=False)
class PageTable:
    """Where the cached tokens of a sequence are: page slot s holds its tokens from s * page on.

    ``length`` tokens were cached; the first ``dropped`` page slots are given up again, because
    nothing reads them any more, and ``pages`` are those after them. ``digests`` name the blocks of
    them that the prefix cache knows.
    """

    pages: list[int] = field(default_factory=list)
    length: int = 0
    dropped: int = 0
    digests: list[bytes] = field(default_factory=list)

    @property
    def slots(self) -> int:
        return self.dropped + len(self.pages)


@dataclass(frozen=True)
class Place:
    """The cached tokens ``start:stop``, counted from the beginning of the first of ``pages``."""

    pages: tuple[int, ...]
    start: int
    stop: int


class Slots:
    """Where the next tokens of a step go: for each its page, and its place in that."""

    def __init__(self, pages: Int[Tensor, " n"], offsets: Int[Tensor, " n"]) -> None:
        self.pages, self.offsets = pages, offsets
        self._of: dict[tuple[int, int], Tensor] = {}

    def of(self, heads: int, size: int) -> Int[Tensor, " m"]:
        """The places of all heads of all tokens in a store seen as (pages h page, d). Layers share
        them."""
        if (heads, size) not in self._of:
            head = self.pages[:, None] * heads + torch.arange(heads, device=self.pages.device)
            self._of[heads, size] = (head * size + self.offsets[:, None]).flatten()
        return self._of[heads, size]


class KVStore:
    """What the layers of one model keep, per layer and kind a tensor ``pages h page d``.

    A tensor is made when a layer first writes, in the dtype of its keys (so autocast is followed)
    and without touching its memory.
    """

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self.layers: dict[int, tuple[Tensor, ...]] = {}

    def write(self, layer: int, slots: Slots, rows: tuple[Float[Tensor, "n _h _d"], ...]) -> None:
        """Put one row per token at its slot."""
        if layer not in self.layers:
            self.layers[layer] = tuple(self._allocate(row) for row in rows)
        for stored, new in zip(self.layers[layer], rows, strict=True):
            _, heads, size, dim = stored.shape
            stored.view(-1, dim).index_copy_(0, slots.of(heads, size), new.reshape(-1, dim))

    def read(self, layer: int, place: Place) -> Kept:
        """A view if the tokens lie in one page, else a copy."""
        pools, pages = self.layers[layer], place.pages
        if len(pages) == 1:
            one = slice(pages[0], pages[0] + 1)
            return tuple(pool[one, :, place.start : place.stop] for pool in pools)
        rows = (torch.cat([pool[page] for page in pages], dim=1) for pool in pools)
        return tuple(row[None, :, place.start : place.stop] for row in rows)

    def copy(self, source: int, target: int, *, tokens: int) -> None:
        """Copy the first ``tokens`` rows of a page, in every layer."""
        for pools in self.layers.values():
            for pool in pools:
                pool[target, :, :tokens] = pool[source, :, :tokens]

    def _allocate(self, like: Float[Tensor, "n h d"]) -> Tensor:
        _, heads, dim = like.shape
        try:
            return like.new_empty(self.num_pages, heads, self.page_tokens, dim)
        except RuntimeError as e:  # the allocator's
            raise ConfigError(
                f"pool_tokens: a KV cache of {self.num_pages} pages of {self.page_tokens} tokens "
                "does not fit into memory; lower pool_tokens, max_sequences or max_sequence_tokens"
            ) from e


@dataclass(frozen=True, kw_only=True)
class Window:
    """How little of a sequence must be kept: the ``back`` tokens before the next query, and the
    at most ``chunk`` new ones that it brings."""

    back: int
    chunk: int


class KVPool:
    """Hands out pages to tables; pages may be shared until one of their owners writes.

    Args:
        num_pages: pages in the pool.
        page_tokens: tokens per page.
        models: number of models whose caches run in step.
        window: what is kept of a sequence; None: all of it.
        reuses: a page that nobody has any more keeps what it holds until it is taken, and whoever
            begins with the same tokens has it again.
    """

    def __init__(
        self,
        num_pages: int,
        page_tokens: int,
        *,
        models: int = 1,
        window: Window | None = None,
        reuses: bool = False,
    ) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self.window = window
        self.stores = [KVStore(num_pages, page_tokens) for _ in range(models)]
        self.references = [0] * num_pages
        self.prefixes = PrefixCache(Blocks(page_tokens)) if reuses else None
        self._blank = list(range(num_pages - 1, -1, -1))
        self._kept: dict[int, None] = {}  # free, too, but of use; the longest unused first

    @property
    def free_pages(self) -> list[int]:
        """Pages that no table has."""
        return [*self._kept, *self._blank]

    @property
    def free(self) -> int:
        """How many they are."""
        return len(self._blank) + len(self._kept)

    @property
    def cached(self) -> int:
        """How many of them hold something of use."""
        return len(self._kept)

    def most_pages(self, tokens: int) -> int:
        """Pages that a sequence holds at most at once until ``tokens`` of it are cached."""
        whole = self._slots_for(tokens)
        if self.window is None:
            return whole
        live = self.window.back + self.window.chunk
        return min(whole, self._slots_for(live - 1) + 1)

    def reserve(self, wanted: Sequence[tuple[PageTable, int]]) -> bool:
        """Make room for ``count`` more tokens in every table, or change nothing and say False.

        A shared page that would be written to is copied first.
        """
        if not self._fits(wanted):
            return False
        for table, count in wanted:
            self._own_last_page(table)
            for _ in range(self._slots_for(table.length + count) - table.slots):
                table.pages.append(self._take())
        return True

    def reuse(self, table: PageTable, tokens: Sequence[int], *, root: bytes) -> int:
        """Give an empty table what pages hold of the beginning of ``tokens``, the last one aside;
        how many tokens that is. It takes no more pages than ``reserve`` would for ``tokens``.

        Whole pages are shared, and of the last one what is of use is copied."""
        if self.prefixes is None or not root:
            return 0
        blocks, digests = self.prefixes.blocks, table.digests
        blocks.extend(digests, tokens, root=root, upto=len(tokens) - 1)
        back = None if self.window is None else self.window.back
        del digests[self.prefixes.longest(digests, back=back) :]
        if not digests:
            return 0
        table.length = blocks.end(len(digests) - 1)
        table.dropped = self._outlived(table.length)
        whole, rest = divmod(table.length, self.page_tokens)
        for slot in range(table.dropped, whole):
            page = self.prefixes.page_of(digests[(slot + 1) * blocks.per_page - 1])
            self._hold(page)
            table.pages.append(page)
        if rest:
            table.pages.append(self._begun(digests[whole * blocks.per_page :], rest))
        return table.length

    def advance(
        self, table: PageTable, count: int, *, tokens: Sequence[int] = (), root: bytes = b""
    ) -> None:
        """``count`` more tokens are cached; give up the pages that no later query reads. With the
        ``root`` of its chain, others may use what this table has of ``tokens``."""
        table.length += count
        if root and self.prefixes is not None:
            self._remember(self.prefixes, table, tokens, root)
        outlived = self._outlived(table.length) - table.dropped
        if outlived > 0:
            for page in table.pages[:outlived]:
                self._drop(page)
            del table.pages[:outlived]
            table.dropped += outlived

    def trim(self, table: PageTable) -> None:
        """Give up the pages behind the last cached token: they were reserved for drafts."""
        keep = self._slots_for(table.length) - table.dropped
        for page in table.pages[keep:]:
            self._drop(page)
        del table.pages[keep:]

    def fork(self, table: PageTable) -> PageTable:
        """A second table over the same pages; costs no copy until one of the two is written."""
        for page in table.pages:
            self.references[page] += 1
        return PageTable(list(table.pages), table.length, table.dropped, list(table.digests))

    def release(self, table: PageTable) -> None:
        """Give up all pages of ``table``; it is empty afterwards and may be used again."""
        for page in table.pages:
            self._drop(page)
        table.pages.clear()
        table.digests.clear()
        table.length = table.dropped = 0

    def recount(self, tables: Iterable[PageTable]) -> None:
        """A step was broken off: a page belongs to the tables that have it, the others are free."""
        held = Counter(page for table in tables for page in table.pages)
        self.references = [held[page] for page in range(self.num_pages)]
        free = [p for p in range(self.num_pages - 1, -1, -1) if not held[p]]
        of_use = [p for p in (*self._kept, *free) if not held[p] and self._holds(p)]
        self._kept = dict.fromkeys(of_use)
        self._blank = [p for p in free if p not in self._kept]

    def clear(self) -> None:
        """All pages are free, and nothing that they hold is of use."""
        if self.prefixes is not None:
            self.prefixes.clear()
        self.recount(())

    def distrust(self, pages: Iterable[int]) -> None:
        """Nobody else shall use what these pages hold."""
        if self.prefixes is not None:
            for page in pages:
                self.prefixes.forget(page)

    def _fits(self, wanted: Sequence[tuple[PageTable, int]]) -> bool:
        """Whether the free pages suffice. Of k tables that share a page and write to it, all but
        the last owner need a copy."""
        needed = 0
        left: dict[int, int] = {}
        for table, count in wanted:
            needed += self._slots_for(table.length + count) - table.slots
            page = self._written_page(table)
            if page is not None:
                owners = left.get(page, self.references[page])
                needed += owners > 1
                left[page] = owners - 1 if owners > 1 else owners
        return needed <= self.free

    def _written_page(self, table: PageTable) -> int | None:
        """The existing page that the next token goes to."""
        slot = table.length // self.page_tokens
        return table.pages[slot - table.dropped] if slot < table.slots else None

    def _own_last_page(self, table: PageTable) -> None:
        page = self._written_page(table)
        if page is None or self.references[page] == 1:
            return
        copy = self._take()
        for store in self.stores:
            store.copy(page, copy, tokens=table.length % self.page_tokens)
        slot = table.length // self.page_tokens
        table.pages[slot - table.dropped] = copy
        if self.prefixes is not None:
            self.prefixes.add(copy, table.digests[slot * self.prefixes.blocks.per_page :])
        self._drop(page)

    def _outlived(self, tokens: int) -> int:
        """Page slots that nothing reads any more once so many tokens are cached."""
        if self.window is None:
            return 0
        return max(0, (tokens - self.window.back) // self.page_tokens)

    def _remember(
        self, known: PrefixCache, table: PageTable, tokens: Sequence[int], root: bytes
    ) -> None:
        """Blocks of ``table`` that have become whole."""
        old = len(table.digests)
        if known.blocks.within(table.length) <= old:
            return
        known.blocks.extend(table.digests, tokens, root=root, upto=table.length)
        for block in range(old, len(table.digests)):
            slot = block // known.blocks.per_page - table.dropped
            if slot >= 0:
                known.add(table.pages[slot], table.digests[block : block + 1])

    def _begun(self, digests: Sequence[bytes], tokens: int) -> int:
        """A page of one's own whose first tokens are these blocks."""
        assert self.prefixes is not None
        source = self.prefixes.page_of(digests[-1])
        free = self.references[source] == 0
        if free and (self.free == 1 or self.prefixes.last_of(source) == digests[-1]):
            self._hold(source)
            self.prefixes.forget(source)
            page = source
        else:
            if free:  # it is in use again: another one shall be taken
                del self._kept[source]
                self._kept[source] = None
            page = self._take()
            for store in self.stores:
                store.copy(source, page, tokens=tokens)
        self.prefixes.add(page, digests)
        return page

    def _slots_for(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)

    def _take(self) -> int:
        if self._blank:
            page = self._blank.pop()
        else:
            page = next(iter(self._kept))
            del self._kept[page]
            self.distrust((page,))
        self.references[page] = 1
        return page

    def _hold(self, page: int) -> None:
        """One owner more of a page that holds something of use."""
        self._kept.pop(page, None)
        self.references[page] += 1

    def _holds(self, page: int) -> bool:
        return self.prefixes is not None and self.prefixes.holds(page)

    def _drop(self, page: int) -> None:
        self.references[page] -= 1
        if self.references[page]:
            return
        if self._holds(page):
            self._kept[page] = None
        else:
            self._blank.append(page)
