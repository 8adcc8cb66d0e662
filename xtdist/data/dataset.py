"""A split of a prepared dataset, read as one long stream of tokens."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from xtdist.config import DataError
from xtdist.data.manifest import Manifest, read_manifest
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
        folder = Path(folder)
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
        with self._lock:
            if i not in self._open:
                info = self._shards[i]
                self._open[i] = open_shard(
                    self.folder / info.path,
                    info,
                    dtype=self.manifest.dtype,
                    hashed=self.verify != "size",
                )
                self._check_ids(i)
            return self._open[i]

    def _check_ids(self, i: int) -> None:
        """With ``size`` nothing else stands between a damaged id and an embedding lookup."""
        if self.verify == "size" and self._open[i][0].max() >= self.manifest.vocab_size:
            tokens, _ = self._open.pop(i)
            raise DataError(
                f"{self.folder / self._shards[i].path}: holds id {cast(int, tokens.max())}, the "
                f"vocabulary ends at {self.manifest.vocab_size - 1}"
            )
