"""Documents that are too long to have their tokens in memory beside their text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtdist.data.tokenizer import Tokenizer

LONG_CHARS = 2**24


def long_document(text: str, tokenizer: Tokenizer, path: Path, dtype: str) -> NDArray[Any]:
    """The tokens of ``text`` and the end-of-text id, mapped from a file that has no name any more.
    They take disk, not memory: pages of a file can be dropped, those of an array can't."""
    with open(path, "wb") as file:
        for tokens in tokenizer.encode_parts(text):
            tokens.astype(dtype).tofile(file)
        np.array([tokenizer.eot_id], dtype).tofile(file)
    mapped = np.memmap(path, dtype, mode="r")
    path.unlink()
    return mapped
