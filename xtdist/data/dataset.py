"""A split of a prepared dataset, read as one long stream of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtdist.config import DataError
from xtdist.data.arrays import Ints
from xtdist.data.config import Verify
from xtdist.data.manifest import Manifest
from xtdist.data.mapped import MappedShards, most_mapped
from xtdist.data.opening import read_manifest, read_tokenizer
from xtdist.data.shards import Tokens, total
from xtdist.data.storage.config import CacheConfig
from xtdist.data.storage.folder import Folder, open_folder
from xtdist.data.stream import Stream, by_value
from xtdist.data.tokenizer import Tokenizer

# Below this, asking the kernel for a stretch of a file costs more than it can win.
ADVISED_BYTES = 32 * 1024


class TokenDataset:
    """The virtual concatenation of a split's shards, in manifest order.

    Tokens and documents are counted over the split. Shards are mapped, and by default hashed, when
    first read; a shard that wasn't hashed has its ids checked against the vocabulary instead, as
    they are read. Safe to read from several threads; pickles as its folder.

    Attributes:
        path: the folder, as given.
        total_tokens, num_documents: of the split.
        text_bytes: UTF-8 bytes of its documents: the denominator of bits per byte.

    Example:
        >>> ds = TokenDataset.open("data/demo", "train")                      # doctest: +SKIP
        >>> rows = np.empty((2, 257), ds.manifest.dtype)                      # doctest: +SKIP
        >>> ds.gather(np.array([0, 5000]), rows)                              # doctest: +SKIP
    """

    def __init__(
        self,
        folder: Folder,
        split: str,
        *,
        manifest: Manifest,
        tokenizer: Tokenizer,
        verify: Verify,
        cache: CacheConfig,
    ) -> None:
        self.path, self.split, self.verify, self.cache = folder.name, split, verify, cache
        self.manifest, self.tokenizer = manifest, tokenizer
        self.dataset_id = manifest.dataset_id
        infos = manifest.splits[split]
        self._stream = Stream(infos)
        self.total_tokens, self.num_documents = self._stream.tokens, self._stream.docs
        self.text_bytes = total(infos, "text_bytes")
        self._dtype = np.dtype(manifest.dtype)
        self._trusted = verify != "size" or folder.verified
        self._shards = MappedShards(
            folder,
            infos,
            dtype=manifest.dtype,
            hashed=verify != "size" and not folder.verified,
            most=most_mapped(folder, infos, cache),
        )

    @classmethod
    def open(
        cls,
        path: str | Path,
        split: str = "train",
        verify: Verify = "touch",
        cache: CacheConfig | None = None,
    ) -> TokenDataset:
        """Open one split of the dataset in a folder, or at an ``s3://`` or ``gs://`` address.

        Args:
            verify: ``touch`` hashes each shard when it is first read, ``full`` all of them now,
                ``size`` trusts file sizes (remote shards are hashed always).
            cache: where remote shards are kept.

        Raises:
            DataError: no such folder, no manifest, no such split, a shard that is missing or of
                another size, a tokenizer other than the one it was made with. A shard whose content
                changed is refused when first read (``touch``) or here (``full``).
        """
        folder = open_folder(path, cache)
        manifest = read_manifest(folder)
        infos = manifest.splits.get(split)
        if not infos:
            names = ", ".join(sorted(k for k, v in manifest.splits.items() if v))
            raise DataError(f"{folder.name}: has no split {split!r}; it has {names}")
        tokenizer = read_tokenizer(folder, manifest)
        for info in infos:
            folder.check(info)
        dataset = cls(
            folder,
            split,
            manifest=manifest,
            tokenizer=tokenizer,
            verify=verify,
            cache=cache or CacheConfig(),
        )
        if verify == "full":
            for i in range(len(infos)):
                dataset._shards[i]
        return dataset

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenDataset.open, (self.path, self.split, self.verify, self.cache)

    def gather(self, starts: Ints, out: NDArray[Any]) -> None:
        """Copy rows of consecutive tokens: ``out[i] = tokens[starts[i] : starts[i] + w]``.

        Args:
            starts: [r], any order; a row may go on over shards' edges.
            out: [r, w] of the manifest's dtype, C-contiguous.
        """
        rows, width = out.shape
        if rows == 0 or width == 0:
            return
        low, high = int(starts.min()), int(starts.max()) + width
        self._stream.check(low, high)
        shards, local = self._stream.locate(starts)
        if (starts + width > self._stream.starts[shards + 1]).any():
            places = np.arange(rows) * width
            self.gather_parts(starts, np.full(rows, width), out.reshape(-1), places=places)
            return
        raw = self._shards.raw(shards)
        if high - low <= 2 * out.size:  # neighbours, not random rows
            self._advise(low, high)
        flat, size = self._bytes(out), width * self._dtype.itemsize
        begins = local * self._dtype.itemsize
        at = 0
        # A slice of bytes copied to a slice of bytes: half the cost of the same in numpy.
        for k, a, b in zip(shards.tolist(), begins.tolist(), (begins + size).tolist(), strict=True):
            flat[at : at + size] = raw[k][a:b]
            at += size
        if not self._trusted and out.max() >= self.manifest.vocab_size:
            for start, row in zip(starts.tolist(), out, strict=True):
                self._check_ids(row, start)

    def gather_parts(self, starts: Ints, lengths: Ints, out: NDArray[Any], *, places: Ints) -> None:
        """Copy runs of different lengths:
        ``out[places[i] : places[i] + lengths[i]] = tokens[starts[i] : starts[i] + lengths[i]]``.

        Args:
            starts, lengths, places: [n].
            out: 1-D, of the manifest's dtype, contiguous.
        """
        if len(starts) == 0:
            return
        self._stream.check(int(starts.min()), int((starts + lengths).max()))
        if places.min() < 0 or (places + lengths).max() > out.size or lengths.min() < 0:
            raise IndexError(f"places outside of {out.size} or negative lengths")
        if not (some := lengths > 0).all():  # an empty run may start where the last shard ends
            self.gather_parts(starts[some], lengths[some], out, places=places[some])
            return
        shards, local = self._stream.locate(starts)
        room = self._stream.starts[shards + 1] - starts
        if (over := lengths > room).any():  # cut at the edges, until each part is in one shard
            fits = np.minimum(lengths, room)
            self.gather_parts(starts, fits, out, places=places)
            starts, places, lengths = starts + fits, places + fits, lengths - fits
            self.gather_parts(starts[over], lengths[over], out, places=places[over])
            return
        raw, flat, size = self._shards.raw(shards), self._bytes(out), self._dtype.itemsize
        numbers = (x.tolist() for x in (shards, local * size, places * size, lengths * size))
        for k, a, at, n in zip(*numbers, strict=True):
            flat[at : at + n] = raw[k][a : a + n]
        if not self._trusted:
            runs = zip(starts.tolist(), places.tolist(), lengths.tolist(), strict=True)
            for start, at, n in runs:
                self._check_ids(out[at : at + n], start)

    def read(self, start: int, stop: int) -> Tokens:
        """Tokens [start, stop); a read-only view of the file unless it spans shards."""
        self._stream.check(start, stop)
        if start == stop:
            return np.empty(0, self._dtype)
        self._advise(start, stop)
        parts = [self._shards[k].tokens[a:b] for k, a, b in self._stream.cut(start, stop)]
        tokens = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if not self._trusted:
            self._check_ids(tokens, start)
        return tokens

    def documents(self) -> Iterator[Tokens]:
        """Every document in order, each with its end-of-text token at the end."""
        for k, (low, high) in enumerate(itertools.pairwise(self._stream.starts.tolist())):
            tokens = self.read(low, high)
            for start, stop in itertools.pairwise(self._shards[k].offsets.tolist()):
                yield tokens[start:stop]

    def will_need(self, start: int, stop: int) -> None:
        """Tokens [start, stop) come next: shards are fetched and checked if they weren't, and the
        kernel is asked to read that part of them from the disk in the background."""
        self._stream.check(start, stop)
        for k, a, b in self._stream.cut(start, stop):
            self._shards[k].will_need(a, b)

    def document_at(self, positions: Ints) -> Ints:
        """[n] the number of the document that holds each token."""
        if len(positions) == 0:
            return np.empty(0, np.int64)
        self._stream.check(int(positions.min()), int(positions.max()) + 1)
        shards, local = self._stream.locate(positions)
        numbers = self._stream.first_docs[shards] - 1
        needles = local.astype(np.int32)  # as the offsets are: else numpy converts all of those
        for k, here in by_value(shards):
            numbers[here] += self._shards[k].offsets.searchsorted(needles[here], side="right")
        return numbers

    def document_bounds(self, numbers: Ints) -> tuple[Ints, Ints]:
        """([n], [n]) where each document starts and stops, in tokens of the split."""
        shards, local = self._stream.locate_documents(numbers)
        starts = self._stream.starts[shards]
        stops = starts.copy()
        for k, here in by_value(shards):
            offsets, at = self._shards[k].offsets, local[here]
            starts[here] += offsets[at]
            stops[here] += offsets[at + 1]
        return starts, stops

    def doc_ids(self, numbers: Ints) -> list[bytes]:
        """The content id of each document: the first 16 bytes of the sha256 of its text."""
        shards, local = self._stream.locate_documents(numbers)
        pairs = zip(shards.tolist(), local.tolist(), strict=True)
        return [self._shards[k].doc_ids[i].tobytes() for k, i in pairs]

    def _advise(self, start: int, stop: int) -> None:
        if (stop - start) * self._dtype.itemsize >= ADVISED_BYTES:
            self.will_need(start, stop)

    def _bytes(self, out: NDArray[Any]) -> memoryview:
        if out.dtype != self._dtype or not out.flags.c_contiguous:
            raise ValueError(f"out must be {self._dtype} and contiguous; it is {out.dtype}")
        return out.data.cast("B")

    def _check_ids(self, tokens: Tokens, start: int) -> None:
        """Refuse an id that the vocabulary hasn't, naming the file; ``start``: of the first."""
        if len(tokens) and tokens.max() >= self.manifest.vocab_size:
            at = start + int(tokens.argmax())
            shard = int(self._stream.starts.searchsorted(at, side="right")) - 1
            raise DataError(
                f"{self.path}/{self._shards.infos[shard].path}: holds id {tokens.max()}, the "
                f"vocabulary ends at {self.manifest.vocab_size - 1}; restore the file, or prepare "
                "the dataset again"
            )
