"""A split of a prepared dataset, read as one long stream of tokens."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xtdist.config import DataError
from xtdist.data.config import local_path
from xtdist.data.manifest import MANIFEST_FILE, Manifest, read_manifest
from xtdist.data.shards import Tokens, check_size, open_shard, total
from xtdist.data.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer

Verify = Literal["touch", "full", "size"]


class TokenDataset:
    """The virtual concatenation of a split's shards, in manifest order.

    Window i of length L is tokens [iL, iL + L]: L + 1 tokens, so every token but the first (and the
    last few) is a target exactly once. Shards are mapped, and by default hashed, when first read.
    Safe to read from several threads; pickles as its folder.

    Example:
        >>> ds = TokenDataset.open("data/demo", "train")                      # doctest: +SKIP
        >>> ds.window(0, 256).shape                                           # doctest: +SKIP
        (257,)
    """

    def __init__(
        self, folder: Path, split: str, *, manifest: Manifest, tokenizer: Tokenizer, verify: Verify
    ) -> None:
        self.folder, self.split, self.verify = folder, split, verify
        self.manifest, self.tokenizer = manifest, tokenizer
        self.dataset_id = manifest.dataset_id
        self._shards = manifest.splits[split]
        self._starts = np.cumsum([0, *(s.tokens for s in self._shards)], dtype=np.int64)
        self._open: dict[int, tuple[Tokens, Tokens]] = {}
        self._lock = threading.Lock()
        for shard in self._shards:
            check_size(folder / shard.path, shard)
        if verify == "full":
            for i in range(len(self._shards)):
                self._shard(i)

    @classmethod
    def open(
        cls, folder: str | Path, split: str = "train", verify: Verify = "touch"
    ) -> TokenDataset:
        """Open one split.

        Raises:
            DataError: no such folder, no manifest, no such split, a shard that is missing or of
                another size, a tokenizer other than the one it was made with. A shard whose content
                changed is refused when first read (``touch``) or here (``full``).
        """
        folder = local_path(folder)
        manifest = read_manifest(folder)
        if not manifest.splits.get(split):
            raise DataError(
                f"{folder}: has no split {split!r}; it has {', '.join(sorted(manifest.splits))}"
            )
        tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
        if tokenizer.sha256 != manifest.tokenizer.sha256:
            raise DataError(
                f"{folder / TOKENIZER_FILE}: not the tokenizer that this dataset was made with "
                f"(sha256 {tokenizer.sha256[:12]}…, the manifest says "
                f"{manifest.tokenizer.sha256[:12]}…); restore it, or prepare the dataset again"
            )
        for key in ("vocab_size", "eot_id"):
            said, is_ = getattr(manifest, key), getattr(tokenizer, key)
            if said != is_:
                raise DataError(
                    f"{folder / MANIFEST_FILE}: {key} is {said}, its tokenizer has {is_}; prepare "
                    "the dataset again"
                )
        return cls(folder, split, manifest=manifest, tokenizer=tokenizer, verify=verify)

    @property
    def total_tokens(self) -> int:
        return int(self._starts[-1])

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the split's documents: the denominator of bits per byte."""
        return total(self._shards, "text_bytes")

    @property
    def num_documents(self) -> int:
        return total(self._shards, "docs")

    def num_windows(self, seq_len: int) -> int:
        """How many windows of ``seq_len`` targets there are."""
        return max(0, (self.total_tokens - 1) // seq_len)

    def window(self, index: int, seq_len: int) -> Tokens:
        """Tokens [index · seq_len, index · seq_len + seq_len]: seq_len + 1 of them."""
        if not 0 <= index < self.num_windows(seq_len):
            raise IndexError(f"window {index} of {self.num_windows(seq_len)}")
        return self.read(index * seq_len, index * seq_len + seq_len + 1)

    def windows(self, indices: NDArray[np.int64], seq_len: int) -> NDArray[np.int64]:
        """Many windows at once, as rows of (len(indices), seq_len + 1) int64 ids."""
        count, width = self.num_windows(seq_len), seq_len + 1
        if len(indices) and not (indices.min() >= 0 and indices.max() < count):
            raise IndexError(f"windows {indices.min()} to {indices.max()} of {count}")
        starts = indices * seq_len
        shards = np.searchsorted(self._starts, starts, side="right") - 1
        offsets = starts - self._starts[shards]
        rows = np.empty((len(indices), width), np.int64)
        for row, shard, offset in zip(rows, shards.tolist(), offsets.tolist(), strict=True):
            part = self._shard(shard)[0][offset : offset + width]
            if len(part) < width:
                start = int(self._starts[shard]) + offset
                part = self.read(start, start + width)
            row[:] = part
        return rows

    def read(self, start: int, stop: int) -> Tokens:
        """Tokens [start, stop); a read-only view of the file unless it spans shards."""
        if not 0 <= start <= stop <= self.total_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.total_tokens}")
        if start == stop:
            return np.empty(0, self.manifest.dtype)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        for i in range(first, len(self._shards)):
            low, high = int(self._starts[i]), int(self._starts[i + 1])
            if low >= stop:
                break
            parts.append(self._shard(i)[0][max(start, low) - low : min(stop, high) - low])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def documents(self) -> Iterator[Tokens]:
        """Every document in order, each with its end-of-text token at the end."""
        for i in range(len(self._shards)):
            tokens, offsets = self._shard(i)
            for start, stop in itertools.pairwise(offsets):
                yield tokens[start:stop]

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenDataset.open, (str(self.folder), self.split, self.verify)

    def _shard(self, i: int) -> tuple[Tokens, Tokens]:
        shard = self._open.get(i)
        return shard if shard is not None else self._open_shard(i)

    def _open_shard(self, i: int) -> tuple[Tokens, Tokens]:
        info = self._shards[i]
        path = self.folder / info.path
        with self._lock:
            if i not in self._open:
                dtype, hashed = self.manifest.dtype, self.verify != "size"
                self._open[i] = open_shard(path, info, dtype=dtype, hashed=hashed)
            return self._open[i]
