"""What every tokenizer can do; the kinds differ in how they encode and in what their file holds."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xtdist.config import ConfigError, DataError

TOKENIZER_FILE = "tokenizer.json"
MOST_IDS = 2**24
_CHECK_CHARS = 2**20


@dataclass(frozen=True)
class Roles:
    """Ids that training and decoding need: end of a document, mask, padding."""

    eot: int
    mask: int
    pad: int

    def check(self, vocab_size: int, where: str) -> None:
        """Raises DataError unless they are three ids of the vocabulary."""
        ids = (self.eot, self.mask, self.pad)
        if len(set(ids)) < 3 or not all(0 <= i < vocab_size for i in ids):
            raise DataError(
                f"{where}: eot, mask and pad are ids {ids}; they must be three different ids from "
                f"0 to {vocab_size - 1}"
            )


@dataclass(frozen=True)
class Pieces:
    """Bytes by id, and what a whole text has that its tokens have not said.

    ``of``: the bytes of each id; none for special tokens. ``lead``: a text that begins with this
    (the space that some tokenizers put before a first word) is shown without it, ``trail``: the
    same at its end. Both hold for whole texts only: a continuation is the bytes of its tokens.
    """

    of: list[bytes]
    lead: bytes = b""
    trail: bytes = b""


class Tokenizer(ABC):
    """Text to ids and back. Safe to use from several threads; pickles.

    Attributes:
        kind: byte, bpe, huggingface, tiktoken or sentencepiece.
        vocab_size: number of ids, special ones included.
        eot_id, mask_id, pad_id: special tokens. They have no bytes, and no text encodes to them:
            text that spells one is plain text (a prompt can't inject one).

    Example:
        >>> t = byte_tokenizer()
        >>> t.decode(t.encode("héllo"))
        'héllo'
    """

    kind: str

    def __init__(self, pieces: Pieces, roles: Roles, *, where: str = "tokenizer") -> None:
        """Raises DataError for roles outside the vocabulary."""
        self.pieces, self.roles = pieces, roles
        self.vocab_size = len(pieces.of)
        self.eot_id, self.mask_id, self.pad_id = roles.eot, roles.mask, roles.pad
        if self.vocab_size > MOST_IDS:
            raise DataError(f"{where}: {self.vocab_size} ids; at most {MOST_IDS} are allowed")
        roles.check(self.vocab_size, where)

    @abstractmethod
    def _parts(self, text: str) -> Iterator[NDArray[np.uint32]]:
        """Ids of valid Unicode that is not empty, part by part."""

    @abstractmethod
    def _content(self) -> str:
        """The canonical content: a function of what the tokenizer does, not of where it was."""

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Ids of ``text``, without special tokens.

        Raises:
            DataError: the text holds half of a surrogate pair, which no encoding can write.
        """
        parts = list(self.encode_parts(text))
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, np.uint32)])

    def encode_parts(self, text: str) -> Iterator[NDArray[np.uint32]]:
        """The ids of ``text`` in parts, for texts that are too long to have all of them in memory.
        Raises as ``encode``."""
        if not text.isascii():
            _check_unicode(text)
        return self._parts(text) if text else iter(())

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the whole text ``ids``; special tokens have none."""
        given = ids if isinstance(ids, np.ndarray | Sequence) else list(ids)
        array = np.asarray(given, np.int64)
        if array.size:
            for wrong in (int(array.min()), int(array.max())):
                self._check_id(wrong)
        raw = b"".join(map(self.pieces.of.__getitem__, array.tolist()))
        return raw.removeprefix(self.pieces.lead).removesuffix(self.pieces.trail)

    def decode(self, ids: Iterable[int]) -> str:
        """The whole text ``ids``; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for within a text; empty for a special token."""
        self._check_id(token_id)
        return self.pieces.of[token_id]

    @property
    def required_ids(self) -> int:
        """Ids that a model must know: all but a mask and a padding that stand behind the others,
        which no text, no end of a document and no prediction of the next token has."""
        count = self.vocab_size
        while count - 1 in (self.mask_id, self.pad_id):
            count -= 1
        return count

    @cached_property
    def text(self) -> str:
        """The canonical content of ``tokenizer.json``."""
        return self._content()

    @property
    def sha256(self) -> str:
        """Of the canonical content: equal for tokenizers that do the same."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write ``tokenizer.json`` to ``path`` (the file, not its folder)."""
        Path(path).write_bytes(self._file().encode())

    def _file(self) -> str:
        """What ``save`` writes; it may say more than the canonical content."""
        return self.text

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise ConfigError(
                f"token id {token_id}: the vocabulary has ids 0 to {self.vocab_size - 1}"
            )


def _check_unicode(text: str) -> None:
    try:
        for start in range(0, len(text), _CHECK_CHARS):
            text[start : start + _CHECK_CHARS].encode()
    except UnicodeEncodeError as e:
        raise DataError(
            f"text has a lone surrogate (\\u{ord(text[start + e.start]):04x}) at character "
            f"{start + e.start}; "
            "only valid Unicode can be encoded"
        ) from None
