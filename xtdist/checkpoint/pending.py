"""Saving in two halves, the first on the step path: until all state is saved by ``Saver``."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from xtdist.checkpoint.layout import FileEntry, hash_file, list_files, write_manifest
from xtdist.checkpoint.naming import STAGING
from xtdist.checkpoint.store import CheckpointStore
from xtdist.config import from_mapping, to_mapping
from xtdist.files import sync, write_atomic


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
