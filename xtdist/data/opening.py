"""The two small files of a dataset, read and checked: its manifest and its tokenizer."""

from __future__ import annotations

import hashlib
from pathlib import Path

from xtdist.config import DataError
from xtdist.data.manifest import MANIFEST_FILE, Manifest, parse_manifest
from xtdist.data.storage.folder import Folder, open_folder
from xtdist.data.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer


def read_manifest(folder: Folder | str | Path) -> Manifest:
    """The manifest of the dataset in ``folder`` (or at that path).

    Raises:
        DataError: no folder, no manifest (unfinished, or not a dataset), or a changed one.
    """
    if isinstance(folder, str | Path):
        folder = open_folder(folder)
    try:
        raw = folder.read_bytes(MANIFEST_FILE)
    except FileNotFoundError:
        if not folder.exists():
            raise DataError(
                f"{folder.name}: no such folder; make the dataset first: xtdist prepare <config> "
                f"output={folder.name}"
            ) from None
        raise DataError(
            f"{folder.name}: has no {MANIFEST_FILE}, so it is not a (finished) dataset; give the "
            "folder that `xtdist prepare` made"
        ) from None
    return parse_manifest(raw, f"{folder.name}/{MANIFEST_FILE}")


def read_tokenizer(folder: Folder, manifest: Manifest) -> Tokenizer:
    """The dataset's tokenizer.

    Raises:
        DataError: it is missing, or another than the one the dataset was made with.
    """
    where = f"{folder.name}/{TOKENIZER_FILE}"
    try:
        raw = folder.read_bytes(TOKENIZER_FILE)
    except FileNotFoundError:
        raise DataError(
            f"{where}: can't be read (missing); restore it, or prepare the dataset again"
        ) from None
    sha256 = hashlib.sha256(raw).hexdigest()
    if sha256 != manifest.tokenizer.sha256:
        raise DataError(
            f"{where}: not the tokenizer that this dataset was made with (sha256 {sha256[:12]}…, "
            f"the manifest says {manifest.tokenizer.sha256[:12]}…); restore it, or prepare the "
            "dataset again"
        )
    tokenizer = load_tokenizer(raw)
    made = {"vocab_size": tokenizer.vocab_size, "eot_id": tokenizer.eot_id, "kind": tokenizer.kind}
    said = {
        "vocab_size": manifest.vocab_size,
        "eot_id": manifest.eot_id,
        "kind": manifest.tokenizer.kind,
    }
    for key, value in said.items():
        if value != made[key]:
            raise DataError(
                f"{folder.name}/{MANIFEST_FILE}: {key} is {value}, its tokenizer has {made[key]}; "
                "prepare the dataset again"
            )
    return tokenizer
