"""Tokenizers of our own: bytes, or byte-level BPE. Hugging Face reads their file as it is.

Ids: 0-255 are the bytes, then the merges in rank order, then ``<|endoftext|>``, ``<|mask|>``,
``<|pad|>``. Decoding gives back every text exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtdist.config import ConfigError, DataError
from xtdist.data.tokenizer.base import Pieces, Roles, Tokenizer
from xtdist.data.tokenizer.config import MIN_BPE_VOCAB, SPECIAL_TOKENS
from xtdist.data.tokenizer.merges import Merge, byte_characters, train_merges
from xtdist.data.tokenizer.ranks import RankEncoder

_BLOCK_CHARS = 2**20


class ByteBpeTokenizer(Tokenizer):
    """Defined by its merges alone (none: the byte tokenizer)."""

    def __init__(self, merges: Sequence[Merge] = ()) -> None:
        self.merges: tuple[Merge, ...] = tuple(merges)
        tokens = [bytes([b]) for b in range(256)] + [a + b for a, b in self.merges]
        n = len(tokens)
        self.kind = "bpe" if merges else "byte"
        self._ranks = RankEncoder(tokens, "gpt2")
        super().__init__(Pieces([*tokens, b"", b"", b""]), Roles(n, n + 1, n + 2))

    def _parts(self, text: str) -> Iterator[NDArray[np.uint32]]:
        if self.merges:
            return self._ranks.parts(text)
        blocks = (text[i : i + _BLOCK_CHARS] for i in range(0, len(text), _BLOCK_CHARS))
        return (np.frombuffer(b.encode(), np.uint8).astype(np.uint32) for b in blocks)

    def _content(self) -> str:
        return json.dumps(_to_json(self.merges), ensure_ascii=False, indent=1) + "\n"

    def __reduce__(self) -> tuple[Any, ...]:
        return ByteBpeTokenizer, (self.merges,)


def byte_tokenizer() -> Tokenizer:
    """One token per UTF-8 byte: 259 ids."""
    return ByteBpeTokenizer()


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with at most ``vocab_size`` ids, special tokens included."""
    if vocab_size < MIN_BPE_VOCAB:
        raise ConfigError(f"vocab_size: got {vocab_size}; BPE needs at least {MIN_BPE_VOCAB}")
    return ByteBpeTokenizer(train_merges(texts, vocab_size - 256 - len(SPECIAL_TOKENS)))


def from_spec(spec: Any, where: str) -> Tokenizer:
    """The tokenizer of a parsed ``tokenizer.json``. Raises DataError unless we made that file."""
    byte_of = {c: b for b, c in enumerate(byte_characters())}
    try:
        merges = [
            (bytes(byte_of[c] for c in a), bytes(byte_of[c] for c in b))
            for a, b in spec["model"]["merges"]
        ]
        same = _to_json(merges) == spec
    except (KeyError, TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise DataError(
            f"{where}: not a tokenizer of this package (byte-level BPE whose vocabulary follows "
            "from its merges, or one that was taken over); make one with `xtdist prepare`, which "
            "takes over others too: tokenizer={kind: huggingface, path: tokenizer.json}"
        )
    return ByteBpeTokenizer(merges)


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
