"""What a failure is called, from Ray's own errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import PreemptionError
from ray.train.v2.api.preemption import PreemptionInfo

from xtdist.launch.failures import HANG_FILE, classify

COLLATERAL = RuntimeError("[gloo] Connection closed by peer [10.0.0.2]:4444")


def dead(message: str, *, preempted: bool = False) -> Exception:
    """As Ray Train reports a worker that does not answer."""
    cause = RayActorError(error_msg=message, preempted=preempted)
    return WorkerHealthCheckFailedError("A worker health check failed.", failure=cause)


KILLED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n"
    "\tpid: 7\n\tip: 10.0.0.2\nThe actor is dead because its worker process has died. Worker exit "
    "type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code "
    "2. End of file. Some common causes include: (1) the process was killed by the OOM killer due "
    "to high memory usage, (2) ray stop --force was called, or (3) the worker crashed unexpectedly "
    "due to SIGSEGV or another unexpected error."
)
NODE = (
    "The actor died unexpectedly before finishing this task.\n\tip: 10.0.0.2\nThe actor died "
    "because its node has died. Node Id: abc\n\tthe actor's node was terminated unexpectedly"
)
MEMORY = (
    "The actor died unexpectedly.\n\tip: 10.0.0.2\nTask was killed due to the node running low on "
    "memory."
)


@pytest.mark.parametrize(
    ("failures", "line"),
    [
        ({1: dead(KILLED), 0: COLLATERAL}, "worker killed: rank 1: its process on 10.0.0.2 ended"),
        ({0: dead(NODE), 1: COLLATERAL}, "node lost: rank 0: its node on 10.0.0.2 died"),
        ({2: dead(MEMORY)}, "out of memory: rank 2: killed because its node on 10.0.0.2 ran out"),
        ({2: OutOfMemoryError("x")}, "out of memory: rank 2: killed because its node ran out"),
        ({0: dead(NODE, preempted=True), 1: dead(KILLED)}, "preempted: rank 0: its node on 10.0"),
        ({0: ActorDiedError()}, "worker killed: rank 0: its process ended without a word"),
        ({1: COLLATERAL}, "connection lost: rank 1: the connection to another worker was lost"),
        ({0: COLLATERAL, 1: ValueError("a")}, "error: rank 1: ValueError: a"),
        ({1: ValueError("a\nb"), 0: ValueError("a")}, "error: rank 0, 1: ValueError: a"),
    ],
)
def test_the_cause_is_told_and_not_what_followed(tmp_path, failures, line):
    assert str(classify(WorkerGroupError("x", failures), tmp_path)).startswith(line)


def test_only_what_the_cluster_does_is_free(tmp_path):
    taken = PreemptionError(PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"n": [1]}))
    assert (classify(taken, tmp_path).kind, classify(taken, tmp_path).counts) == (
        "preempted",
        False,
    )
    late = classify(ControllerError(WorkerGroupStartupTimeoutError(2)), tmp_path)
    assert (late.kind, late.counts) == ("no room", False)
    start = classify(ControllerError(WorkerGroupStartupFailedError("gone")), tmp_path)
    assert (start.kind, start.counts) == ("not started", True)
    assert str(classify(OSError("disk"), tmp_path)) == "ray: OSError: disk"


def test_a_hang_is_told_as_the_watchdog_wrote_it(tmp_path: Path) -> None:
    (tmp_path / HANG_FILE).write_text(json.dumps({"ranks": [1], "text": "rank 1 in backward"}))
    failure = classify(WorkerGroupError("x", {0: dead(KILLED)}), tmp_path)
    assert (failure.kind, failure.ranks, failure.counts) == ("hang", (1,), True)
    assert failure.text == "rank 1 in backward"
