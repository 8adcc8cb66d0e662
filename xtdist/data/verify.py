"""A full check of a dataset: every byte, structure and total; it tells all problems, not one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xtdist.config import DataError
from xtdist.data.manifest import MANIFEST_FILE, Manifest, ShardInfo
from xtdist.data.mapped import MappedShard, open_shard
from xtdist.data.opening import read_manifest, read_tokenizer
from xtdist.data.shards import repeated_ids
from xtdist.data.storage.config import CacheConfig
from xtdist.data.storage.folder import Folder, open_folder

# done and total bytes of shards
OnVerified = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was checked and what is wrong.

    Attributes:
        dataset_id: None if the manifest can't be trusted; then nothing else was checked.
        shards, documents, tokens, bytes: of the shards whose content is what was written.
        problems: a sentence each, naming the file and the field; empty if all is well.
    """

    path: str
    dataset_id: str | None
    shards: int
    documents: int
    tokens: int
    bytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass
class _Found:
    """What the shards held, for what must be compared between them."""

    problems: list[str] = field(default_factory=list)
    intact: list[ShardInfo] = field(default_factory=list)
    doc_ids: list[NDArray[np.uint64]] = field(default_factory=list)  # [docs, 2] each


def verify(
    path: str | Path, *, cache: CacheConfig | None = None, progress: OnVerified | None = None
) -> VerifyReport:
    """Check the dataset at ``path`` (a folder, ``s3://`` or ``gs://``) against its manifest: the
    tokenizer; each shard's size, bytes and structure; that every document ends with the end-of-text
    id, has ids of the vocabulary and a ``doc_id`` of its own; the totals.

    Memory: 40 bytes per document.

    Args:
        cache: where remote shards are kept.
        progress: called with the bytes done and the bytes of all, at first and after each shard.

    Raises:
        DataError: there is no such folder. Everything else is a problem in the report.
    """
    folder = open_folder(path, cache)
    if not folder.exists():
        raise DataError(f"{folder.name}: no such folder; give the folder of a dataset")
    found = _Found()
    manifest = None
    try:
        manifest = read_manifest(folder)
        read_tokenizer(folder, manifest)
    except DataError as e:
        found.problems.append(str(e))
    if manifest is not None:
        _check_shards(folder, manifest, found=found, progress=progress or (lambda *_: None))
        _check_doc_ids(folder, found)
        _check_totals(folder, manifest, found)
    return VerifyReport(
        path=folder.name,
        dataset_id=manifest.dataset_id if manifest is not None else None,
        shards=len(found.intact),
        documents=sum(s.docs for s in found.intact),
        tokens=sum(s.tokens for s in found.intact),
        bytes=sum(s.bytes for s in found.intact),
        problems=tuple(found.problems),
    )


def _check_shards(
    folder: Folder, manifest: Manifest, *, found: _Found, progress: OnVerified
) -> None:
    infos = [info for split in sorted(manifest.splits) for info in manifest.splits[split]]
    done, everything = 0, sum(info.bytes for info in infos)
    progress(done, everything)
    for info in infos:
        try:
            path = folder.shard(info)
            try:
                shard = open_shard(path, info, dtype=manifest.dtype, hashed=not folder.verified)
                found.problems += _wrong_in(
                    shard, info, manifest, name=f"{folder.name}/{info.path}"
                )
                found.doc_ids.append(np.frombuffer(shard.doc_ids.tobytes(), ">u8").reshape(-1, 2))
                del shard
            finally:
                folder.release(info)
            found.intact.append(info)
        except DataError as e:
            found.problems.append(str(e))
        done += info.bytes
        progress(done, everything)


def _wrong_in(shard: MappedShard, info: ShardInfo, manifest: Manifest, *, name: str) -> list[str]:
    """What is wrong with a shard that holds the bytes that were written."""
    problems = []
    shard.will_need(0, len(shard.tokens))
    highest = int(shard.tokens.max())
    if highest >= manifest.vocab_size:
        problems.append(
            f"{name}: holds id {highest}, the vocabulary ends at {manifest.vocab_size - 1}"
        )
    if highest != info.max_id:
        problems.append(
            f"{name}: its largest id is {highest}, the manifest says max_id {info.max_id}"
        )
    open_ends = np.flatnonzero(shard.tokens[shard.offsets[1:] - 1] != manifest.eot_id)
    if len(open_ends):
        problems.append(
            f"{name}: {len(open_ends)} documents don't end with the end-of-text id "
            f"{manifest.eot_id}, document {open_ends[0]} first"
        )
    return problems


def _check_doc_ids(folder: Folder, found: _Found) -> None:
    """A content stands once in a dataset, in whichever split."""
    if not found.doc_ids:
        return
    ids = np.concatenate(found.doc_ids)
    order, again = repeated_ids(ids)
    if len(again) == 0:
        return
    starts = np.cumsum([0, *(s.docs for s in found.intact)])
    places = []
    for number in order[again[0] - 1 : again[0] + 1].tolist():
        shard = int(starts.searchsorted(number, side="right")) - 1
        places.append(f"document {number - starts[shard]} of {found.intact[shard].path}")
    doc_id = ids[order[again[0]]].astype(">u8").tobytes().hex()
    where = f"in {places[0]} and in {places[1]} ({len(again)} such repetitions)"
    found.problems.append(f"{folder.name}: doc_id {doc_id} stands {where}")


def _check_totals(folder: Folder, manifest: Manifest, found: _Found) -> None:
    infos = [info for shards in manifest.splits.values() for info in shards]
    sums = {
        "documents": (manifest.build.documents, sum(s.docs for s in infos)),
        "text_bytes": (manifest.build.text_bytes, sum(s.text_bytes for s in infos)),
    }
    for key, (said, is_) in sums.items():
        if said != is_:
            found.problems.append(
                f"{folder.name}/{MANIFEST_FILE}: build.{key} is {said}, its shards have {is_}"
            )
