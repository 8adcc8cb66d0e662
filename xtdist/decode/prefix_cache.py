"""Beginnings of texts that pages still hold: whoever asks for the same one need not compute it.

A text is cut into blocks, each named by a digest of the block before it and of its own tokens; the
chain begins with what else its keys and values depend on, and with a salt. So a digest stands for
all tokens up to the end of its block, and two texts share it only if they share all of that.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK_TOKENS = 16


def root_of(salt: str, *, models: int) -> bytes:
    """The beginning of every chain of texts with this salt that so many models have read."""
    return hashlib.sha256(f"{models} {salt}".encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True)
class Blocks:
    """Where the blocks of a text end: ``BLOCK_TOKENS`` apart in every page, and at its end."""

    page_tokens: int

    @property
    def per_page(self) -> int:
        return -(-self.page_tokens // BLOCK_TOKENS)

    def within(self, tokens: int) -> int:
        """How many blocks are whole in so many tokens."""
        pages, rest = divmod(tokens, self.page_tokens)
        return pages * self.per_page + rest // BLOCK_TOKENS

    def end(self, block: int) -> int:
        """The number of tokens up to its end."""
        page, place = divmod(block, self.per_page)
        return page * self.page_tokens + min((place + 1) * BLOCK_TOKENS, self.page_tokens)

    def extend(
        self, digests: list[bytes], tokens: Sequence[int], *, root: bytes, upto: int
    ) -> None:
        """Add to the digests of the first blocks those of all others within ``upto`` tokens."""
        for block in range(len(digests), self.within(upto)):
            start = self.end(block - 1) if block else 0
            own = array("q", tokens[start : self.end(block)]).tobytes()
            digests.append(hashlib.sha256((digests[-1] if digests else root) + own).digest())


@dataclass(eq=False)
class PrefixCache:
    """Which pages hold which blocks. A page that holds one holds all that come before it in the
    page.

    What is broken off in the middle of a change may leave a page out, but never a block that its
    page does not hold.
    """

    blocks: Blocks
    _pages: dict[bytes, dict[int, None]] = field(default_factory=dict)
    _digests: dict[int, dict[bytes, None]] = field(default_factory=dict)

    def add(self, page: int, digests: Sequence[bytes]) -> None:
        """``page`` holds these blocks, too."""
        for digest in digests:
            self._digests.setdefault(page, {})[digest] = None
            self._pages.setdefault(digest, {})[page] = None

    def forget(self, page: int) -> None:
        """It will hold something else."""
        for digest in self._digests.get(page, ()):
            holders = self._pages.get(digest, {})
            holders.pop(page, None)
            if not holders:
                self._pages.pop(digest, None)
        self._digests.pop(page, None)

    def clear(self) -> None:
        """No page holds anything."""
        self._pages.clear()
        self._digests.clear()

    def holds(self, page: int) -> bool:
        """Whether a page holds anything."""
        return page in self._digests

    def last_of(self, page: int) -> bytes | None:
        """The last block that is known of a page."""
        return next(reversed(self._digests.get(page, {})), None)

    def page_of(self, digest: bytes) -> int:
        """The page that has come to hold this block last; there must be one."""
        return next(reversed(self._pages[digest]))

    def longest(self, digests: Sequence[bytes], *, back: int | None) -> int:
        """How many of the first blocks of a text need not be computed: each page of them that is
        read from there on is held. ``back``: how many tokens before the next one are read; None:
        all."""
        per_page, size = self.blocks.per_page, self.blocks.page_tokens
        best = run = 0
        for slot in range(len(digests) // per_page + 1):
            for block in range(slot * per_page, min((slot + 1) * per_page, len(digests))):
                first = 0 if back is None else max(0, (self.blocks.end(block) - back) // size)
                if slot - run <= first and digests[block] in self._pages:
                    best = block + 1
            whole = (slot + 1) * per_page
            held = whole <= len(digests) and digests[whole - 1] in self._pages
            run = run + 1 if held else 0
        return best
