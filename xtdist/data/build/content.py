"""What follows from a document's content alone: its id, its split, its lot for subsets."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")

ROW = np.dtype([("digest", ">u8", (4,)), ("bytes", "<u8"), ("blank", "?")])
"""What a scan keeps of a document: sha256 of its UTF-8 text, as four words; the text's size;
whether it is nothing but white space."""

PIECE_CHARS = 2**20


def content_hash(text: str) -> tuple[bytes, int]:
    """sha256 of the text in UTF-8, and its size there; a long text is never encoded as a whole."""
    if len(text) <= PIECE_CHARS:
        raw = text.encode()
        return hashlib.sha256(raw).digest(), len(raw)
    content, size = hashlib.sha256(), 0
    for start in range(0, len(text), PIECE_CHARS):
        raw = text[start : start + PIECE_CHARS].encode()
        content.update(raw)
        size += len(raw)
    return content.digest(), size


def lots(words: NDArray[Any]) -> NDArray[np.float64]:
    """Numbers in [0, 1) drawn from 64-bit words of digests: word 2 for the split, 3 for subsets."""
    return (words.astype(np.uint64) >> np.uint64(11)) / 2**53
