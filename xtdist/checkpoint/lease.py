"""Exactly one writer of a run.

Whoever wants to train takes the next epoch, by creating its file (see ``claims.py``). The driver's
heartbeat keeps it; another driver that watched it for ``EXPIRY_S`` of its own monotonic clock
without a change takes the next epoch, so no two clocks are ever compared. A holder that only slept
finds a newer epoch when it looks, which it does right before anything is published: it can't
commit. What it had staged the new owner has swept away, so a look that came just in time does not
help it either.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtdist.checkpoint.claims import (
    Claims,
    beat_file,
    epoch_file,
    newest_epoch,
    open_claims,
)
from xtdist.config import CheckpointError, DataError, ResourceError, UserError

EXPIRY_S = 30.0
BEATS = 10  # in the time of an expiry
REMEMBERED = 20  # files of old epochs that stay, to look at
_HELD, _RELEASED = "held", "released"


class FencedError(CheckpointError):
    """Another process took over this run; nothing that this one saves counts any more."""


def check_epoch(place: str | Path, epoch: int) -> None:
    """Make sure that ``epoch`` still is the newest; 0 stands for a process without a lease.

    Raises:
        FencedError: another process took over.
        OSError, DataError: it can't be found out now.
    """
    claims = open_claims(place)
    if epoch and (newest := newest_epoch(claims)) > epoch:
        raise FencedError(
            f"{claims.name}: {_holder(claims, newest)} took over this run (epoch {newest}, ours is "
            f"{epoch}), so this process saves nothing more"
        )


@dataclass
class _Seen:
    """A heartbeat, and since when (own monotonic clock) it has not changed."""

    beat: bytes | None
    since: float


class Lease:
    """The right to write the run at ``place``: its folder, or where its checkpoints are on a store.

    A context manager; ``epoch`` is valid inside, and ``lost`` says that another took over.
    """

    def __init__(self, place: str | Path, *, expiry_s: float = EXPIRY_S) -> None:
        self.place, self.epoch = place, 0
        self._claims, self._expiry_s = open_claims(place), expiry_s
        self._stop, self._lost = threading.Event(), threading.Event()
        self._began, self._beats = 0.0, 0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    @property
    def lost(self) -> bool:
        """Whether another process took over, as of the last heartbeat."""
        return self._lost.is_set()

    def acquire(self) -> int:
        """Take the next epoch, and begin to beat. Waits up to ``expiry_s`` (a third of it, if the
        holder is well) unless the last holder let go or is a dead process of this host.

        Raises:
            ResourceError: another process holds it (host, pid and age named), or the place can't
                be written.
        """
        try:
            newest = newest_epoch(self._claims)
            if newest:
                self._wait_for_end(newest)
            if not self._claims.create(epoch_file(newest + 1), self._record()):
                raise ResourceError(self._taken(newest_epoch(self._claims)))
            self.epoch, self._began = newest + 1, time.monotonic()
            self._beat(_HELD)
            self._forget(newest)
        except OSError as e:
            raise ResourceError(f"{self._claims.name}: can't be written ({e})") from None
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self.epoch

    def release(self) -> None:
        """Stop beating; the next one need not wait."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self._expiry_s)
        if self.epoch:
            self._try_to_beat(_RELEASED)

    def check(self) -> None:
        """See :func:`check_epoch`."""
        check_epoch(self.place, self.epoch)

    def _wait_for_end(self, epoch: int) -> None:
        """Until the holder of ``epoch`` is gone; an error as soon as it is seen to be well."""
        holder = _record_of(self._claims, epoch)
        seen = _Seen(self._claims.read(beat_file(epoch)), time.monotonic())
        while not (_released(seen.beat) or _dead(holder)):
            if time.monotonic() - seen.since > self._expiry_s:
                return
            time.sleep(self._expiry_s / BEATS / 4)
            beat = self._claims.read(beat_file(epoch))
            if beat != seen.beat and not _released(beat):
                raise ResourceError(self._taken(epoch))
            seen.beat = beat

    def _taken(self, epoch: int) -> str:
        return (
            f"{self.place}: {_holder(self._claims, epoch)} is training this run; wait for it, stop "
            "it, or give this one another name"
        )

    def _record(self) -> bytes:
        record = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "born": _born(os.getpid()),
            "token": os.urandom(8).hex(),
        }
        return json.dumps(record).encode()

    def _keep(self) -> None:
        while not self._stop.wait(self._expiry_s / BEATS):
            self._try_to_beat(_HELD)

    def _try_to_beat(self, state: str) -> None:
        """A beat that can't be written now is tried again at the next."""
        try:
            if newest_epoch(self._claims) > self.epoch:
                self._lost.set()
                return
            self._beat(state)
        except (OSError, UserError):
            pass

    def _beat(self, state: str) -> None:
        self._beats += 1
        age_s = time.monotonic() - self._began
        line = f"{state:8} {self._beats:12d} {age_s:15.0f}\n"
        self._claims.write(beat_file(self.epoch), line.encode())

    def _forget(self, newest: int) -> None:
        """Old epochs; the newest ones stay, since the highest number is what counts."""
        for name in self._claims.listed():
            number = name.rpartition("-")[2]
            if number.isdigit() and int(number) < newest - REMEMBERED:
                self._claims.delete(name)


def _released(beat: bytes | None) -> bool:
    return beat is not None and beat.startswith(_RELEASED.encode())


def _record_of(claims: Claims, epoch: int) -> dict[str, Any]:
    try:
        found = json.loads(claims.read(epoch_file(epoch)) or b"")
    except (ValueError, DataError):
        return {}
    return found if isinstance(found, dict) else {}


def _holder(claims: Claims, epoch: int) -> str:
    """Who holds it, for messages."""
    record, beat = _record_of(claims, epoch), claims.read(beat_file(epoch)) or b""
    words = beat.decode(errors="replace").split()
    age = f", since {words[2]} s" if len(words) == 3 else ""
    return f"process {record.get('pid', '?')} on host {record.get('host', '?')}{age}"


def _dead(record: dict[str, Any]) -> bool:
    """Whether it was a process of this host that has ended."""
    pid = record.get("pid")
    here = record.get("machine") == _machine() and isinstance(pid, int)
    return here and _born(int(pid or 0)) != record.get("born")


def _machine() -> str:
    """This boot of this host, and the pids that are seen from here."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux: nobody is known to be dead
        return os.urandom(8).hex()


def _born(pid: int) -> str | None:
    """When a process began, in ticks since the boot: pids are used again. None: there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
