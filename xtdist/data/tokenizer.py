"""Tokenizers: bytes, or byte-level BPE; saved as a ``tokenizer.json`` that Hugging Face reads too.

Ids: 0-255 are the bytes, then the merges in rank order, then ``<|endoftext|>``, ``<|mask|>``,
``<|pad|>``. Decoding gives back every text exactly. Text that spells a special token is plain text
here (a prompt can't inject one); ``tokenizers.Tokenizer.from_file`` alone would read it as special.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xtdist.config import ConfigError, DataError
from xtdist.data.bpe import SPLIT_PATTERN, Merge, byte_characters, train_merges
from xtdist.data.config import MIN_BPE_VOCAB, SPECIAL_TOKENS

TOKENIZER_FILE = "tokenizer.json"

# A long text is encoded in pieces, cut where the split pattern always cuts: before a space or line
# end that follows a letter, digit or bracket. Only a run of half this many characters without such
# a place is cut elsewhere (the regex engine's stack is bounded).
_PIECE_CHARS = 65_536
_SAFE_CUT = re.compile(r"(?<=[0-9A-Za-z.,;:()\[\]{}])[ \n]")


class Tokenizer:
    """Text to ids and back, defined by its merges alone (none: the byte tokenizer).

    Example:
        >>> t = byte_tokenizer()
        >>> t.decode(t.encode("héllo"))
        'héllo'
    """

    def __init__(self, merges: Sequence[Merge] = ()) -> None:
        self.merges: tuple[Merge, ...] = tuple(merges)
        self._bytes = [bytes([b]) for b in range(256)] + [a + b for a, b in self.merges]
        self.eot_id, self.mask_id, self.pad_id = range(len(self._bytes), len(self._bytes) + 3)
        self.vocab_size = len(self._bytes) + len(SPECIAL_TOKENS)

    @property
    def kind(self) -> Literal["byte", "bpe"]:
        return "bpe" if self.merges else "byte"

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Ids of ``text``, without special tokens.

        Raises:
            DataError: the text holds half of a surrogate pair, which no encoding can write.
        """
        try:
            raw = text.encode()
        except UnicodeEncodeError as e:
            raise DataError(
                f"text has a lone surrogate (\\u{ord(text[e.start]):04x}) at character {e.start}; "
                "only valid Unicode can be encoded"
            ) from None
        if not self.merges:
            return np.frombuffer(raw, np.uint8).astype(np.uint32)
        if len(text) <= _PIECE_CHARS:
            return self._encode_piece(text)
        return np.concatenate([self._encode_piece(p) for p in _pieces(text)])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ``ids``; special tokens have none."""
        return b"".join(self.token_bytes(int(i)) for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; empty for a special token."""
        if 0 <= token_id < len(self._bytes):
            return self._bytes[token_id]
        if token_id < self.vocab_size and token_id >= 0:
            return b""
        raise ConfigError(f"token id {token_id}: the vocabulary has ids 0 to {self.vocab_size - 1}")

    @cached_property
    def text(self) -> str:
        """The canonical content of ``tokenizer.json``."""
        return json.dumps(_to_json(self.merges), ensure_ascii=False, indent=1) + "\n"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write ``tokenizer.json`` to ``path`` (the file, not its folder)."""
        Path(path).write_bytes(self.text.encode())

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.merges,)

    def _encode_piece(self, text: str) -> NDArray[np.uint32]:
        ids: NDArray[np.uint32] = self._engine.encode_to_numpy(text, disallowed_special=())
        return ids

    @cached_property
    def _engine(self) -> Any:
        import tiktoken

        ranks = {token: i for i, token in enumerate(self._bytes)}
        return tiktoken.Encoding(
            "xtdist", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )


def byte_tokenizer() -> Tokenizer:
    """One token per UTF-8 byte: 259 ids."""
    return Tokenizer()


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with at most ``vocab_size`` ids, special tokens included."""
    if vocab_size < MIN_BPE_VOCAB:
        raise ConfigError(f"vocab_size: got {vocab_size}; BPE needs at least {MIN_BPE_VOCAB}")
    return Tokenizer(train_merges(texts, vocab_size - 256 - len(SPECIAL_TOKENS)))


def load_tokenizer(path: str | Path | bytes) -> Tokenizer:
    """Read a ``tokenizer.json`` that ``Tokenizer.save`` wrote, or its content.

    Raises:
        DataError: no such file, not JSON, or not exactly such a tokenizer (the formatting is free).
    """
    raw, path = (path, TOKENIZER_FILE) if isinstance(path, bytes) else (None, Path(path))
    try:
        spec = json.loads(path.read_bytes() if isinstance(path, Path) else raw or b"")
    except OSError as e:
        raise DataError(f"{path}: can't be read ({e.strerror}); give a tokenizer.json") from None
    except (ValueError, RecursionError):
        raise DataError(
            f"{path}: not JSON; give a tokenizer.json made by `xtdist prepare`"
        ) from None
    byte_of = {c: b for b, c in enumerate(byte_characters())}
    try:
        merges = [
            (bytes(byte_of[c] for c in a), bytes(byte_of[c] for c in b))
            for a, b in spec["model"]["merges"]
        ]
        tokenizer = Tokenizer(merges)
        same = _to_json(merges) == spec
    except (KeyError, TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise DataError(
            f"{path}: not a tokenizer of this package (byte-level BPE whose vocabulary follows "
            "from its merges); other tokenizers can't be used, make one with `xtdist prepare`"
        )
    return tokenizer


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARS:
        found = _SAFE_CUT.search(text, start + _PIECE_CHARS // 2, start + _PIECE_CHARS)
        stop = found.start() if found else start + _PIECE_CHARS
        yield text[start:stop]
        start = stop
    yield text[start:]


def _to_json(merges: Iterable[Merge]) -> dict[str, Any]:
    """The tokenizer in Hugging Face's format."""
    chars = byte_characters()

    def shown(token: bytes) -> str:
        return "".join(chars[b] for b in token)

    pairs = [(shown(a), shown(b)) for a, b in merges]
    vocab = {token: i for i, token in enumerate([*chars, *(a + b for a, b in pairs)])}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 256 + len(pairs) + i, "content": name, **flags, "special": True}
            for i, name in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in pairs],
        },
    }
