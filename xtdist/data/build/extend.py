"""A dataset that another one extends: its shards, tokenizer and documents go into the new one."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xtdist.config import ConfigError, DataError
from xtdist.data.build.config import PrepareConfig
from xtdist.data.build.content import SPLITS, Split
from xtdist.data.build.lengths import count_lengths
from xtdist.data.build.report import settings_of
from xtdist.data.config import local_path
from xtdist.data.dataset import TokenDataset
from xtdist.data.manifest import INPUTS_FILE, REPORT_FILE, Manifest
from xtdist.data.shards import total
from xtdist.data.tokenizer import Tokenizer
from xtdist.files import sync

_UNIT = re.compile(r"-(\d{5,})-\d{5,}\.arrow$")


@dataclass(frozen=True, kw_only=True)
class Old:
    """What is taken over. ``doc_ids``: two words for each document, 16 bytes; ``inputs``: the
    lines of its ``inputs.jsonl``."""

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer
    doc_ids: NDArray[Any]
    lengths: NDArray[np.int64]
    inputs: str

    @property
    def documents(self) -> dict[Split, int]:
        return {s: total(self.manifest.splits[s], "docs") for s in SPLITS}

    @property
    def text_bytes(self) -> int:
        return sum(total(self.manifest.splits[s], "text_bytes") for s in SPLITS)

    @property
    def next_unit(self) -> int:
        """A number that no unit of its shards has."""
        names = [s.path for split in SPLITS for s in self.manifest.splits[split]]
        return 1 + max(int(found[1]) if (found := _UNIT.search(n)) else 0 for n in names)

    def put_into(self, folder: Path) -> None:
        """Link the shards; copy them where links can't go."""
        for name in (s.path for split in SPLITS for s in self.manifest.splits[split]):
            (folder / name).unlink(missing_ok=True)
            try:
                os.link(self.folder / name, folder / name)
            except OSError:
                shutil.copyfile(self.folder / name, folder / name)
                sync(folder / name)


def open_old(config: PrepareConfig, output: Path) -> Old | None:
    """The dataset of ``extends``, fully verified.

    Raises:
        ConfigError: it is ``output`` itself, or ``valid_fraction`` is another.
        DataError: not a dataset, a damaged one, its report is missing or changed, or its list of
            inputs is damaged.
    """
    if config.extends is None:
        return None
    folder = local_path(config.extends)
    if folder.resolve() == output.resolve():
        raise ConfigError(f"extends: {folder} is the output itself; give a new output")
    splits = [TokenDataset.open(folder, split, verify="full") for split in SPLITS]
    manifest = splits[0].manifest
    fraction = _valid_fraction(folder, manifest)
    if fraction != config.valid_fraction:
        raise ConfigError(
            f"valid_fraction: got {config.valid_fraction}, the dataset of extends has {fraction}; "
            f"set valid_fraction={fraction}, so that documents keep their split"
        )
    inputs = _inputs(folder / INPUTS_FILE)
    ids, lengths = [], np.zeros_like(count_lengths(np.empty(0, np.int64)))
    for split in SPLITS:
        for shard in manifest.splits[split]:
            with pa.memory_map(str(folder / shard.path)) as source:
                table = pa.ipc.open_file(source).read_all()
            for batch in table.to_batches():
                ids.append(_words(batch.column("doc_id")))
                sizes = np.diff(batch.column("tokens").offsets.to_numpy())
                lengths = lengths + count_lengths(sizes.astype(np.int64))
    return Old(
        folder=folder,
        manifest=manifest,
        tokenizer=splits[0].tokenizer,
        doc_ids=np.concatenate(ids),
        lengths=lengths,
        inputs=inputs,
    )


def _words(column: Any) -> NDArray[Any]:
    start = 16 * column.offset
    raw = column.buffers()[1][start : start + 16 * len(column)]
    return np.frombuffer(raw, ">u8").reshape(-1, 2).astype(np.uint64)


def _valid_fraction(folder: Path, manifest: Manifest) -> float:
    settings = settings_of(folder, manifest)
    if settings is not None:
        return float(settings["valid_fraction"])
    raise DataError(
        f"{folder / REPORT_FILE}: missing or changed, so the share of the validation split is not "
        "known and the dataset can't be extended; restore the file, or prepare all the text anew"
    )


def _inputs(path: Path) -> str:
    """Its lines, each ended; a dataset may be without them, as nothing but people reads them."""
    try:
        lines = [line for line in path.read_bytes().decode().split("\n") if line]
        if all(json.loads(line).keys() == {"name", "bytes", "sha256"} for line in lines):
            return "".join(f"{line}\n" for line in lines)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    raise DataError(
        f"{path}: damaged, and the new dataset would take its lines over; restore the file, or "
        "remove it (it only says where the text came from)"
    )
