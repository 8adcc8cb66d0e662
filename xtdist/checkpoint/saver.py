"""Saving off the step path: one rank's side of a save.

``submit`` returns at once. A thread writes this rank's files, hashes them, makes them last (fsync,
or an upload) and leaves a receipt; rank 0 publishes the manifest once it has all receipts. Whatever
goes wrong on any rank makes the save a miss on all of them, never an exception in the step loop:
what was written is removed, and the checkpoints that were there are untouched.

    callables + meta ─▶ write ─▶ hash ─▶ put ─▶ receipt ─┐
                                            (each rank)  ├─▶ rank 0: check() ─▶ manifest ─▶ prune
                                             receipt ────┘             └─▶ end, read by all ranks
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from xtdist.checkpoint.layout import FileEntry, hash_file
from xtdist.checkpoint.lease import FencedError
from xtdist.checkpoint.naming import name_of
from xtdist.checkpoint.retention import Retention
from xtdist.checkpoint.store import CheckpointStore
from xtdist.config import from_mapping, to_mapping

TIMEOUT_S = 600.0
POLL_S = 0.02
UPLOADS = 4

Writer = Callable[[Path], None]


@dataclass(frozen=True)
class Saved:
    """A save that is committed. ``seconds``: from ``submit`` on, in the background."""

    step: int
    name: str
    seconds: float


@dataclass(frozen=True)
class Missed:
    """A save that came to nothing. ``fatal``: none of this process will ever be committed."""

    step: int
    reason: str
    fatal: bool = False


class Exchange(Protocol):
    """How the savers of all ranks talk, from their threads. A torch ``Store`` is one behind two
    lines; values are small."""

    def put(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> str | None:
        """None if nobody put it yet; does not wait."""
        ...


class Shared:
    """The exchange of savers that are all in this process."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def put(self, key: str, value: str) -> None:
        self._values[key] = value

    def get(self, key: str) -> str | None:
        return self._values.get(key)


@dataclass(frozen=True)
class _Job:
    name: str
    step: int
    files: Mapping[str, Writer]
    meta: Mapping[str, Any]
    began: float


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This rank among those that save together."""

    rank: int = 0
    world: int = 1
    exchange: Exchange


class Saver:
    """At most one save is in flight; ``busy`` says so.

    Args:
        attempt: the id of this start of the workers, the same on all ranks.
        ranks: None for a process alone.
        check: called on rank 0 right before publishing; a FencedError of it is the end of this
            process's saves.
        retention: applied after every save that worked.
        timeout_s: how long rank 0 waits for the receipts of the others.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        attempt: str,
        ranks: Ranks | None = None,
        check: Callable[[], None] | None = None,
        retention: Retention | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._store, self._attempt = store, attempt
        self._ranks = ranks or Ranks(exchange=Shared())
        self._check, self._retention, self._timeout_s = check, retention, timeout_s
        self._thread: threading.Thread | None = None
        self._ended: list[Saved | Missed] = []
        self._tries: dict[int, int] = {}

    @property
    def busy(self) -> bool:
        """Whether a save is still being written; it stays so until this rank knows its end."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, step: int, files: Mapping[str, Writer], meta: Mapping[str, Any]) -> None:
        """Begin to save; all ranks do so together, each with its own files.

        Args:
            files: relative path → what writes it; tensors are in host memory and stay as they are.
                The path may also be that of a folder; all files that the writer puts there belong
                to the checkpoint.
            meta: what the manifest says beside the step; rank 0's counts.
        """
        if self.busy:
            raise RuntimeError("a save is in flight; ask busy first")
        tries = self._tries[step] = self._tries.get(step, 0) + 1
        attempt = self._attempt if tries == 1 else f"{self._attempt}t{tries:03d}"
        job = _Job(name_of(step, attempt), step, files, meta, time.monotonic())
        self._thread = threading.Thread(
            target=self._run, args=(job,), name="checkpoint", daemon=True
        )
        self._thread.start()

    def poll(self) -> list[Saved | Missed]:
        """What ended since the last call; never raises."""
        ended, self._ended = self._ended, []
        return ended

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether nothing is in flight, after waiting for it."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.busy

    def _run(self, job: _Job) -> None:
        receipt: dict[str, Any] = {}
        try:
            receipt["files"] = self._write(job)
        except BaseException as e:
            receipt["error"] = f"rank {self._ranks.rank}: {_line(e)}"
        try:
            ended = self._end(job, receipt)
        except BaseException as e:
            ended = Missed(job.step, f"rank {self._ranks.rank}: {_line(e)}")
        self._ended.append(ended)

    def _write(self, job: _Job) -> dict[str, Any]:
        """Write, hash and put this rank's files, the next being written while one is put."""
        storage = self._store.storage
        folder = storage.scratch(job.name, self._ranks.rank)
        entries: dict[str, FileEntry] = {}

        def put(name: str) -> None:
            entries[name] = hash_file(folder / name)
            storage.put(job.name, folder / name, name)

        with ThreadPoolExecutor(UPLOADS, "checkpoint-put") as pool:
            waiting = []
            for name, write in job.files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path)
                written = path.rglob("*") if path.is_dir() else [path]
                names = [p.relative_to(folder).as_posix() for p in written if p.is_file()]
                waiting += [pool.submit(put, n) for n in names]
            for future in waiting:
                future.result()
        return {name: to_mapping(entry) for name, entry in entries.items()}

    def _end(self, job: _Job, receipt: dict[str, Any]) -> Saved | Missed:
        exchange, rank = self._ranks.exchange, self._ranks.rank
        exchange.put(f"{job.name}/{rank}", json.dumps(receipt))
        if rank == 0:
            end = self._conclude(job)
            exchange.put(f"{job.name}/end", json.dumps(end))
        else:
            # Rank 0 may need all of its time and then some to publish.
            end = json.loads(self._await(f"{job.name}/end", 2 * self._timeout_s))
        with contextlib.suppress(OSError):
            self._store.storage.clear(job.name, rank)
        if "reason" in end:
            return Missed(job.step, end["reason"], end["fatal"])
        return Saved(job.step, job.name, time.monotonic() - job.began)

    def _conclude(self, job: _Job) -> dict[str, Any]:
        """Publish, or take back what was written. Never raises."""
        fatal = False
        try:
            files = self._receipts(job)
            if self._check is not None:
                self._check()
            meta = {**job.meta, "step": job.step, "attempt": self._attempt}
            self._store.storage.publish(job.name, files, meta)
        except BaseException as e:
            fatal = isinstance(e, FencedError)
            with contextlib.suppress(Exception):
                self._store.storage.remove(job.name)
            return {"reason": _line(e), "fatal": fatal}
        if self._retention is not None:
            try:
                self._store.prune(self._retention)
            except Exception as e:
                print(f"{self._store.url}: old checkpoints not deleted: {_line(e)}", flush=True)
        return {}

    def _receipts(self, job: _Job) -> dict[str, FileEntry]:
        """The files of all ranks; an error if one of them has one, after all have answered, so
        that nobody writes any more when the rest is removed."""
        deadline = time.monotonic() + self._timeout_s
        receipts = [
            json.loads(self._await(f"{job.name}/{rank}", deadline - time.monotonic()))
            for rank in range(self._ranks.world)
        ]
        errors = [r["error"] for r in receipts if "error" in r]
        if errors:
            raise OSError("; ".join(errors))
        return {n: from_mapping(FileEntry, e) for r in receipts for n, e in r["files"].items()}

    def _await(self, key: str, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        while (value := self._ranks.exchange.get(key)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer ({key}) within {self._timeout_s:.0f} s")
            time.sleep(POLL_S)
        return value


def _line(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"
