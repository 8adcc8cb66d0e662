"""The manifest: what a dataset holds, written last. No manifest, no dataset.

``dataset_id`` is the sha256 of the manifest's canonical text, and the manifest holds the sha256 of
every shard and of the tokenizer: the id stands for every token. It goes into every checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from xtdist.config import (
    ConfigError,
    DataError,
    NonNegativeInt,
    PositiveInt,
    configclass,
    from_mapping,
    to_mapping,
)

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1


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
    kind: Literal["byte", "bpe"]
    sha256: str


@configclass
class BuildInfo:
    """What the dataset was made of: digests of the settings that shape it and of its documents."""

    source: str
    settings_sha256: str
    inputs_sha256: str
    documents: PositiveInt
    text_bytes: PositiveInt


@configclass
class Manifest:
    format_version: Literal[1] = 1
    dtype: Literal["uint16", "uint32"]
    vocab_size: PositiveInt
    eot_id: NonNegativeInt
    tokenizer: TokenizerInfo
    build: BuildInfo
    splits: dict[str, tuple[ShardInfo, ...]]

    @property
    def dataset_id(self) -> str:
        """sha256 of the canonical text (64 hex digits)."""
        return hashlib.sha256(canonical_text(self).encode()).hexdigest()


def canonical_text(manifest: Manifest) -> str:
    """The one text that a manifest is written as: sorted keys, fixed spacing."""
    return json.dumps(to_mapping(manifest), sort_keys=True, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the dataset in ``folder``.

    Raises:
        DataError: no folder, no manifest (unfinished, or not a dataset), or a changed one.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; make the dataset first: xtdist prepare <config> "
            f"output={folder}"
        )
    path = folder / MANIFEST_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(
            f"{folder}: has no {MANIFEST_FILE}, so it is not a (finished) dataset; give the folder "
            "that `xtdist prepare` made"
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: can't be read ({e})") from None
    try:
        tree = json.loads(text)
        if isinstance(tree, dict) and tree.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{path}: format_version is {tree.get('format_version')!r}, this version reads "
                f"{FORMAT_VERSION}; prepare the dataset again"
            )
        manifest = from_mapping(Manifest, tree)
        intact = canonical_text(manifest) == text
    except (ConfigError, ValueError, RecursionError) as e:
        raise DataError(f"{path}: damaged ({e}); prepare the dataset again") from None
    if not intact:
        raise DataError(f"{path}: was edited by hand; prepare the dataset again")
    _check(manifest, path)
    return manifest


def _check(manifest: Manifest, path: Path) -> None:
    """Things that types alone don't say."""
    limit = 2**16 if manifest.dtype == "uint16" else 2**32
    if manifest.vocab_size > limit:
        raise DataError(f"{path}: {manifest.vocab_size} ids don't fit {manifest.dtype}")
    for shards in manifest.splits.values():
        for shard in shards:
            if Path(shard.path).name != shard.path or not shard.path.endswith(".arrow"):
                raise DataError(f"{path}: {shard.path!r} is not a shard of the dataset's folder")
            if shard.max_id >= manifest.vocab_size:
                raise DataError(
                    f"{path}: {shard.path} holds id {shard.max_id}, the vocabulary ends at "
                    f"{manifest.vocab_size - 1}"
                )
