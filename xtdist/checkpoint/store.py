"""Where checkpoints of a run live: ``<run>/checkpoints/step_00000100-<attempt>/``.

Saving is two-phase. Every rank writes its shards into a hidden staging folder (on the step path,
since the tensors change with the next step); then every rank hashes its share of the files in a
background thread, and rank 0 writes the manifest and renames the folder into place. A save that is
killed anywhere leaves only a hidden folder, which the next start sweeps away. The attempt id keeps
a worker that was cut off from writing into its successor's checkpoint.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtdist.checkpoint.layout import (
    FileEntry,
    Manifest,
    hash_file,
    list_files,
    read_manifest,
    verify,
    write_manifest,
)
from xtdist.config import CheckpointError, from_mapping, to_mapping
from xtdist.files import sync, write_atomic

STAGING = ".staging-"
DAMAGED = "damaged-"
_NAME = re.compile(r"step_\d{8,}-[0-9a-z]+")


@dataclass(frozen=True)
class Commit:
    """One committed checkpoint."""

    path: Path
    step: int
    manifest: Manifest


class CheckpointStore:
    """The checkpoints of one run. Methods touch only the file system; who calls them on which rank
    is the training loop's business."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Names of committed checkpoints, oldest step first."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if _NAME.fullmatch(p.name))

    def staging(self, step: int, attempt: str) -> Path:
        """Where the ranks write the files of a checkpoint before it is committed."""
        return self.root / f"{STAGING}step_{step:08d}-{attempt}"

    def sweep(self) -> None:
        """Delete what killed saves left behind. Call before training starts, on one rank."""
        if self.root.is_dir():
            for path in self.root.glob(f"{STAGING}*"):
                shutil.rmtree(path, ignore_errors=True)

    def newest_valid(self) -> Commit | None:
        """The newest checkpoint whose every byte is as it was written.

        A damaged one is renamed to ``damaged-…`` (kept for inspection) and the one before it tried.
        """
        for name in reversed(self.names()):
            try:
                return self.open(name)
            except CheckpointError as e:
                target = self.root / f"{DAMAGED}{name}"
                print(f"checkpoint {name} is damaged and set aside as {target.name}: {e}")
                (self.root / name).rename(target)
        return None

    def open(self, name: str) -> Commit:
        """Verify and return one checkpoint.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        path = self.root / name
        if not path.is_dir():
            have = ", ".join(self.names()) or "none"
            raise CheckpointError(f"{path}: no such checkpoint; there are: {have}")
        manifest = read_manifest(path)
        verify(path, manifest)
        return Commit(path=path, step=int(manifest.meta["step"]), manifest=manifest)

    def prune(self, keep: int) -> None:
        """Delete all but the newest ``keep`` checkpoints; the last one is never deleted."""
        for name in self.names()[: -max(keep, 1)]:
            doomed = self.root / f"{STAGING}delete-{name}"
            (self.root / name).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


class PendingCommit:
    """The background half of a save: hash, then (rank 0) publish.

    Create it on every rank after all ranks have written their files (a barrier); call ``wait``
    before the next save and at the end.
    """

    def __init__(
        self, store: CheckpointStore, staging: Path, *, rank: int, world: int, meta: dict[str, Any]
    ) -> None:
        self.store, self.staging, self.rank, self.world, self.meta = (
            store,
            staging,
            rank,
            world,
            meta,
        )
        self.error: BaseException | None = None
        self._names = list_files(staging)
        self._thread = threading.Thread(target=self._run, name="checkpoint-commit", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> str | None:
        """Block until this rank's part is done; what went wrong, or None. Earlier checkpoints are
        untouched by a failure."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return f"{self.staging}: not finished after {timeout_s:.0f} s"
        return None if self.error is None else f"{self.staging}: {self.error}"

    def _run(self) -> None:
        try:
            share = {n: hash_file(self.staging / n) for n in self._names[self.rank :: self.world]}
            _write_receipt(self.staging, self.rank, share)
            if self.rank == 0:
                self._publish()
        except BaseException as e:
            self.error = e

    def _publish(self, timeout_s: float = 600) -> None:
        files: dict[str, FileEntry] = {}
        deadline = time.monotonic() + timeout_s
        for rank in range(self.world):
            while (share := _read_receipt(self.staging, rank)) is None:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"rank {rank} did not finish hashing in {timeout_s:.0f} s")
                time.sleep(0.02)
            files |= share
        for rank in range(self.world):
            _receipt(self.staging, rank).unlink()
        for name in files:
            sync(self.staging / name)
        write_manifest(self.staging, files, self.meta)
        self.staging.rename(self.store.root / self.staging.name.removeprefix(STAGING))
        sync(self.store.root)


def _receipt(folder: Path, rank: int) -> Path:
    return folder / f".receipt-{rank}.json"


def _write_receipt(folder: Path, rank: int, share: dict[str, FileEntry]) -> None:
    write_atomic(_receipt(folder, rank), json.dumps({n: to_mapping(e) for n, e in share.items()}))


def _read_receipt(folder: Path, rank: int) -> dict[str, FileEntry] | None:
    try:
        raw = json.loads(_receipt(folder, rank).read_text())
    except FileNotFoundError:
        return None
    return {name: from_mapping(FileEntry, entry) for name, entry in raw.items()}
