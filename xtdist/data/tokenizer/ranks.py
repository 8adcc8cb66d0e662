"""Byte-pair encoding by rank, with tiktoken: the fast way to the ids of byte-level BPE."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtdist.config import DataError

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD = r"[^\r\n\p{L}\p{N}]?"

PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": f"{_WORD}{_UPPER}*{_LOWER}+{_ENGLISH}?|{_WORD}{_UPPER}+{_LOWER}*{_ENGLISH}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama3": _ENGLISH + "|" + _WORD + r"\p{L}+|\p{N}{1,3}|" + _REST,
    "qwen2": _ENGLISH + "|" + _WORD + r"\p{L}+|\p{N}|" + _REST,
}
"""How texts are split into words before merging. Each matches all of any text."""

PIECE_CHARS = 65_536
# A word never goes on over these places, in any of the patterns: a space after anything but white
# space, or a line end after a letter or digit. (Punctuation may take line ends along.)
_SAFE_CUT = re.compile(r"(?<=\S) |(?<=[^\W_])\n")


class RankEncoder:
    """Joins neighbours whose bytes together are a token, lowest rank first.

    Args:
        tokens: by rank; all single bytes are among them.
        pattern: a name in ``PATTERNS``, or a regular expression that tiktoken understands.
        ids: the id of each rank, where it is not the rank.
        normalize: applied to a text before; nothing, or NFC, which keeps the cuts below.

    A long text is encoded in pieces, cut where the named patterns always cut. Only a run of half a
    piece without such a place is cut elsewhere (the regex engine's stack is bounded). With another
    expression nothing is known about its words, and a text is encoded whole.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        pattern: str,
        *,
        ids: NDArray[np.uint32] | None = None,
        normalize: Callable[[str], str] = str,
    ) -> None:
        self.tokens, self.pattern, self.ids = tokens, pattern, ids
        self.normalize = normalize

    def parts(self, text: str) -> Iterator[NDArray[np.uint32]]:
        """Ids of ``text``. Raises DataError if an expression of one's own can't split it."""
        for piece in safe_pieces(text) if self.pattern in PATTERNS else (text,):
            ranks = self._whole(self.normalize(piece))
            yield ranks if self.ids is None else self.ids[ranks]

    def _whole(self, text: str) -> NDArray[np.uint32]:
        try:
            ids: NDArray[np.uint32] = self._engine.encode_to_numpy(text, disallowed_special=())
        except BaseException as e:
            if type(e).__name__ != "PanicException":  # what a failure in Rust looks like
                raise
            raise DataError(
                f"pattern: the regular expression can't split a text of {len(text)} characters "
                "(it backtracks too far); use a simpler one, or shorter documents"
            ) from None
        return ids

    @cached_property
    def _engine(self) -> Any:
        import tiktoken

        return tiktoken.Encoding(
            "xtdist",
            pat_str=PATTERNS.get(self.pattern, self.pattern),
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens={},
        )


def safe_pieces(text: str) -> Iterator[str]:
    """``text`` in pieces of at most ``PIECE_CHARS``, cut where the named patterns always cut."""
    start = 0
    while len(text) - start > PIECE_CHARS:
        found = _SAFE_CUT.search(text, start + PIECE_CHARS // 2, start + PIECE_CHARS)
        stop = found.start() if found else start + PIECE_CHARS
        yield text[start:stop]
        start = stop
    yield text[start:]
