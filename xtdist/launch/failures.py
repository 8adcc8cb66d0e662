"""Why an attempt ended: one kind and one line of words for each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HANG_FILE = "hang.json"
KILLED, MEMORY, NODE, PREEMPTED = "worker killed", "out of memory", "node lost", "preempted"
HANG, ERROR, PEER, EARLY = "hang", "error", "connection lost", "ended early"
NO_ROOM, START, RAY = "no room", "not started", "ray"
# The cause before what follows from it: when a worker dies, the others fail in a collective.
_ORDER = (PREEMPTED, HANG, MEMORY, NODE, KILLED, ERROR, PEER)
_PEER = ("Connection reset by peer", "Connection closed by peer", "ncclRemoteError")
_FREE = (PREEMPTED, NO_ROOM)  # of the cluster, not of the run


@dataclass(frozen=True)
class Failure:
    """``ranks``: the workers that it began with, as far as that is known."""

    kind: str
    text: str
    ranks: tuple[int, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether it is one of the failures that ``workers.max_failures`` limits."""
        return self.kind not in _FREE

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def classify(error: BaseException, folder: Path) -> Failure:
    """What ``error`` of ``TorchTrainer.fit`` and the run's folder say about the cause."""
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2.api.exceptions import PreemptionError

    if isinstance(error, PreemptionError):
        return Failure(
            PREEMPTED, "its node is taken away", tuple(error.preemption_info.preempted_ranks)
        )
    hang = _hang(folder)
    if hang is not None:
        return hang
    if isinstance(error, WorkerGroupError):
        return _of_workers(error.worker_failures)
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    name = type(cause).__name__
    if name == "WorkerGroupStartupTimeoutError":
        return Failure(NO_ROOM, "the workers did not start in time (workers.start_timeout_s)")
    if name == "WorkerGroupStartupFailedError":
        return Failure(START, f"a worker died at its start ({_first_line(cause)})")
    return Failure(RAY, f"{name}: {_first_line(cause)}")


def _of_workers(failures: dict[int, Exception]) -> Failure:
    found = {rank: _of_worker(error) for rank, error in sorted(failures.items())}
    kind = min((kind for kind, _ in found.values()), key=_ORDER.index)
    ranks = tuple(rank for rank, (k, _) in found.items() if k == kind)
    said = found[ranks[0]][1]
    return Failure(kind, f"rank {', '.join(map(str, ranks))}: {said}", ranks)


def _of_worker(error: Exception) -> tuple[str, str]:
    from ray.exceptions import OutOfMemoryError, RayActorError

    error = getattr(error, "health_check_failure", error)
    if isinstance(error, OutOfMemoryError):
        return MEMORY, "killed because its node ran out of memory"
    if not isinstance(error, RayActorError):
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _PEER):
            return PEER, "the connection to another worker was lost"
        return ERROR, f"{type(error).__name__}: {_first_line(error)}"
    text, at = str(error), _host(error)
    lower = text.lower()
    if error.preempted:
        return PREEMPTED, f"its node{at} was taken away"
    if "memory" in lower and "oom killer" not in lower:
        return MEMORY, f"killed because its node{at} ran out of memory"
    if "node" in lower and (
        "node has died" in lower or "node died" in lower or "its node" in lower
    ):
        return NODE, f"its node{at} died or can't be reached"
    return KILLED, f"its process{at} ended without a word (SIGKILL, a crash, or out of memory)"


def _host(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    ips = [line.removeprefix("ip: ") for line in lines if line.startswith("ip: ")]
    return f" on {ips[0]}" if ips else ""


def _hang(folder: Path) -> Failure | None:
    try:
        raw: dict[str, Any] = json.loads((folder / HANG_FILE).read_text())
    except (OSError, ValueError):
        return None
    ranks = tuple(int(r) for r in raw.get("ranks", ()))
    return Failure(HANG, str(raw.get("text", "no step was done in time")), ranks)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0].strip()[:300] if lines else "no message"
