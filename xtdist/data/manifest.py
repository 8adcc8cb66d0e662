"""The manifest: what a dataset holds, written last. No manifest, no dataset.

``dataset_id`` is the digest of the manifest's content, and the manifest holds the sha256
of every shard and of the tokenizer: the id stands for every token. It goes into every checkpoint,
and into the manifest's file itself, so that a changed byte shows.
"""

from __future__ import annotations

import functools
import json
from pathlib import PurePath
from typing import Any, Literal

from xtdist.config import (
    ConfigError,
    DataError,
    NonNegativeInt,
    PositiveInt,
    configclass,
    digest,
    from_mapping,
    to_mapping,
)

MANIFEST_FILE = "manifest.json"
INPUTS_FILE = "inputs.jsonl"
REPORT_FILE = "report.json"
LENGTHS_FILE = "lengths.png"
SIDE_FILES = (INPUTS_FILE, REPORT_FILE, LENGTHS_FILE)
"""What a dataset's folder may hold beside manifest, tokenizer and shards: for people."""
FORMAT_VERSION = 3


@configclass
class ShardInfo:
    """One shard. ``bytes`` is the file's size, ``text_bytes`` the UTF-8 size of its documents."""

    path: str
    bytes: PositiveInt
    docs: PositiveInt
    tokens: PositiveInt
    text_bytes: PositiveInt
    max_id: NonNegativeInt
    sha256: str


@configclass
class TokenizerInfo:
    kind: str
    sha256: str


@configclass
class BuildInfo:
    """What the dataset was made of: digests of the settings that shape it and of its documents. Not
    where these lay, or in what kind of files: same text, same dataset."""

    settings_sha256: str
    inputs_sha256: str
    documents: PositiveInt
    text_bytes: PositiveInt


@configclass
class Manifest:
    format_version: Literal[3] = 3
    dtype: Literal["uint16", "uint32"]
    vocab_size: PositiveInt
    eot_id: NonNegativeInt
    tokenizer: TokenizerInfo
    build: BuildInfo
    splits: dict[str, tuple[ShardInfo, ...]]

    @functools.cached_property
    def dataset_id(self) -> str:
        """sha256 of the canonical content (64 hex digits)."""
        return digest(self)


def canonical_text(manifest: Manifest) -> str:
    """The one text that a manifest is written as: its id and its content."""
    return _text({**to_mapping(manifest), "dataset_id": manifest.dataset_id})


def _text(tree: dict[str, Any]) -> str:
    return json.dumps(tree, sort_keys=True, indent=1) + "\n"


def parse_manifest(raw: bytes, path: str) -> Manifest:
    """The manifest that ``raw`` holds; ``path`` is its name in messages.

    Raises:
        DataError: of another format version, or not byte for byte what was written.
    """
    try:
        text = raw.decode()
        tree = json.loads(text)
        if isinstance(tree, dict) and tree.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{path}: format_version is {tree.get('format_version')!r}, this version reads "
                f"{FORMAT_VERSION}; prepare the dataset again"
            )
        said = tree.get("dataset_id") if isinstance(tree, dict) else None
        content = {k: v for k, v in tree.items() if k != "dataset_id"} if said else tree
        manifest = from_mapping(Manifest, content)
    except (ConfigError, ValueError, RecursionError) as e:
        raise DataError(f"{path}: damaged ({e}); prepare the dataset again") from None
    if said != manifest.dataset_id:
        raise DataError(
            f"{path}: was changed since it was written (dataset_id is {said!r}, its content gives "
            f"{manifest.dataset_id!r}); restore it, or prepare the dataset again"
        )
    if _text(tree) != text:
        raise DataError(f"{path}: was edited by hand; prepare the dataset again")
    _check(manifest, path)
    return manifest


def _check(manifest: Manifest, path: str) -> None:
    """Things that types alone don't say."""
    limit = 2**16 if manifest.dtype == "uint16" else 2**32
    if manifest.vocab_size > limit:
        raise DataError(f"{path}: {manifest.vocab_size} ids don't fit {manifest.dtype}")
    if manifest.eot_id >= manifest.vocab_size:
        raise DataError(
            f"{path}: eot_id is {manifest.eot_id}, the vocabulary ends at {manifest.vocab_size - 1}"
        )
    seen: set[str] = set()
    for split, shards in manifest.splits.items():
        for i, shard in enumerate(shards):
            key = f"{path}: splits.{split}.{i}"
            if PurePath(shard.path).name != shard.path or not shard.path.endswith(".arrow"):
                raise DataError(f"{key}: {shard.path!r} is not a shard of the dataset's folder")
            if shard.path in seen:
                raise DataError(f"{key}: {shard.path!r} is listed twice")
            if shard.max_id >= manifest.vocab_size:
                raise DataError(
                    f"{key}: {shard.path} holds id {shard.max_id}, the vocabulary ends at "
                    f"{manifest.vocab_size - 1}"
                )
            seen.add(shard.path)
