"""Text to a dataset: scan, train the tokenizer, encode, write shards, publish.

Doing it again with the same settings and the same text finds the finished dataset and reuses it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xtdist.config import DataError, to_mapping
from xtdist.data.config import BpeTokenizerConfig, PrepareConfig, local_path
from xtdist.data.corpus import SPLITS, Counts, Split, Text, scan, texts
from xtdist.data.dataset import TokenDataset
from xtdist.data.manifest import (
    MANIFEST_FILE,
    BuildInfo,
    Manifest,
    TokenizerInfo,
    canonical_text,
    read_manifest,
)
from xtdist.data.ours import refuse_foreign
from xtdist.data.shards import ShardWriter, token_dtype, total
from xtdist.data.staging import publish, staged
from xtdist.data.tokenizer import TOKENIZER_FILE, Tokenizer, byte_tokenizer, train_bpe
from xtdist.files import write_atomic


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a build is: ``done_bytes`` of ``total_bytes`` (0: not known) of text in ``stage``."""

    stage: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    documents: int
    tokens: int
    text_bytes: int
    shards: int


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What ``prepare`` made, or found made already (``reused``)."""

    folder: str
    dataset_id: str
    reused: bool
    vocab_size: int
    splits: dict[str, SplitReport]
    duplicates: int
    empty: int
    unreadable: int
    seconds: float


OnProgress = Callable[[Progress], None]


def prepare(config: PrepareConfig, progress: OnProgress | None = None) -> PrepareReport:
    """Make the dataset that ``config`` describes, in one process and bounded memory.

    Raises:
        DataError: no text, text that can't be read, or ``output`` holds something else (files that
            are not a dataset's are never replaced).
        ResourceError: no room on the disk.
    """
    start = time.monotonic()
    report = progress or (lambda _: None)
    output = local_path(config.output)
    refuse_foreign(output)
    counts = scan(
        config.source,
        config.valid_fraction,
        lambda done: report(Progress(stage="scan", done_bytes=done, total_bytes=0)),
    )
    manifest = _finished(config, output, counts)
    reused = manifest is not None
    if manifest is None:
        with staged(output, needed_bytes=_needed_bytes(config, counts)) as folder:
            manifest = _build(config, folder, counts, report)
            refuse_foreign(output)
            publish(folder, output, replace=config.replace)
    return PrepareReport(
        folder=str(output),
        dataset_id=manifest.dataset_id,
        reused=reused,
        vocab_size=manifest.vocab_size,
        splits={
            name: SplitReport(
                documents=total(shards, "docs"),
                tokens=total(shards, "tokens"),
                text_bytes=total(shards, "text_bytes"),
                shards=len(shards),
            )
            for name, shards in manifest.splits.items()
        },
        duplicates=counts.duplicates,
        empty=counts.empty,
        unreadable=counts.unreadable,
        seconds=time.monotonic() - start,
    )


def _build(config: PrepareConfig, folder: Path, counts: Counts, report: OnProgress) -> Manifest:
    """Write everything into ``folder``, the manifest last."""
    tokenizer = _make_tokenizer(config, counts, report)
    tokenizer.save(folder / TOKENIZER_FILE)
    dtype = token_dtype(tokenizer.vocab_size)
    writers: dict[Split, ShardWriter] = {
        split: ShardWriter(
            folder,
            split,
            dtype=dtype,
            shard_tokens=config.shard_tokens,
            tokenizer_sha256=tokenizer.sha256,
        )
        for split in SPLITS
    }
    again = Counts()
    eot = np.array([tokenizer.eot_id], np.uint32)
    for text in texts(config.source, config.valid_fraction, again):
        tokens = np.concatenate([tokenizer.encode(text.text), eot])
        writers[text.split].add(tokens, text_bytes=text.bytes, doc_id=text.doc_id)
        report(
            Progress(stage="encode", done_bytes=again.total_bytes, total_bytes=counts.total_bytes)
        )
    if again.sha256 != counts.sha256:
        raise DataError("source: the text changed while it was read; run again when it is at rest")
    manifest = Manifest(
        dtype="uint16" if dtype == "uint16" else "uint32",
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        tokenizer=TokenizerInfo(kind=tokenizer.kind, sha256=tokenizer.sha256),
        build=_build_info(config, counts),
        splits={split: writer.close() for split, writer in writers.items()},
    )
    write_atomic(folder / MANIFEST_FILE, canonical_text(manifest))
    return manifest


def _make_tokenizer(config: PrepareConfig, counts: Counts, report: OnProgress) -> Tokenizer:
    """The configured tokenizer; BPE learns from training documents only, never from validation."""
    spec = config.tokenizer
    if not isinstance(spec, BpeTokenizerConfig):
        return byte_tokenizer()
    share = min(1.0, spec.train_bytes / counts.text_bytes["train"])
    expected = int(share * counts.text_bytes["train"])

    def chosen() -> Iterator[str]:
        done, lowest = 0, None
        for text in texts(config.source, config.valid_fraction, Counts()):
            if text.split == "train" and text.lot < share:
                done += text.bytes
                report(Progress(stage="tokenizer", done_bytes=done, total_bytes=expected))
                yield text.text[: spec.train_bytes]
            elif text.split == "train" and not done:
                lowest = _lower(lowest, text)
        if lowest and not done:  # few large documents, none of them chosen
            yield lowest.text[: spec.train_bytes]

    return train_bpe(chosen(), spec.vocab_size)


def _lower(one: Text | None, other: Text) -> Text:
    return other if one is None or other.lot < one.lot else one


def _finished(config: PrepareConfig, output: Path, counts: Counts) -> Manifest | None:
    """The manifest in ``output`` if it is of this dataset, intact; None if it must be built."""
    if not (output / MANIFEST_FILE).exists():
        return None
    try:
        manifest = read_manifest(output)
        if manifest.build == _build_info(config, counts):
            for split in SPLITS:
                TokenDataset.open(output, split, verify="full")
            return manifest
        changed = "made with other settings"
        if manifest.build.settings_sha256 == _build_info(config, counts).settings_sha256:
            changed = "made from other text"
    except DataError as e:
        changed = f"damaged: {e}"
    if config.replace:
        return None
    raise DataError(
        f"output: {output} holds another dataset ({changed}); choose another output, or set "
        "replace=true to build this one in its place"
    )


def _build_info(config: PrepareConfig, counts: Counts) -> BuildInfo:
    """What the dataset follows from; not where the text lies: same text, same dataset."""
    settings = {
        "tokenizer": to_mapping(config.tokenizer),
        "valid_fraction": config.valid_fraction,
        "shard_tokens": config.shard_tokens,
    }
    text = json.dumps(settings, sort_keys=True)
    return BuildInfo(
        source=config.source.kind,
        settings_sha256=hashlib.sha256(text.encode()).hexdigest(),
        inputs_sha256=counts.sha256,
        documents=counts.total_documents,
        text_bytes=counts.total_bytes,
    )


def _needed_bytes(config: PrepareConfig, counts: Counts) -> int:
    """Estimated size of the dataset: one id per byte, or per two bytes for BPE (usually 3 or 4)."""
    if isinstance(config.tokenizer, BpeTokenizerConfig):
        itemsize = np.dtype(token_dtype(config.tokenizer.vocab_size)).itemsize
        return counts.total_bytes * itemsize // 2
    return counts.total_bytes * 2
