"""What counts as a failure of the run, when it is enough, and what is written down of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from xtdist.launch.attempts import Attempts, attempt_line, read_attempts
from xtdist.launch.failures import KILLED, NO_ROOM, PREEMPTED, Failure

DEAD = Failure(KILLED, "rank 1: gone", (1,))


def fail(attempts: Attempts, steps: list[tuple[int, int]], failure: Failure = DEAD) -> list[bool]:
    """One failed attempt from each first step to each second; after which it was given up."""
    said = []
    for first, last in steps:
        attempts.started(workers=2, step=first)
        attempts.failed(failure, last)
        said.append(attempts.given_up)
    return said


def test_a_run_without_progress_is_given_up_after_so_many_restarts(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, max_failures=2)
    assert fail(attempts, [(0, 0)] * 3) == [False, False, True]
    assert fail(Attempts(tmp_path, max_failures=0), [(0, 0)]) == [True]


def test_a_run_that_commits_between_its_failures_is_never_given_up(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, max_failures=1)
    assert not any(fail(attempts, [(n, n + 1) for n in range(50)]))
    assert fail(attempts, [(50, 50)]) == [True]


@pytest.mark.parametrize("kind", [PREEMPTED, NO_ROOM])
def test_what_the_cluster_does_is_not_the_runs_failure(tmp_path: Path, kind: str) -> None:
    attempts = Attempts(tmp_path, max_failures=0)
    assert not any(fail(attempts, [(4, 4)] * 20, Failure(kind, "taken")))
    assert attempts.delay_s == 0


def test_the_pause_before_a_start_doubles_up_to_a_minute(tmp_path: Path) -> None:
    attempts, pauses = Attempts(tmp_path, max_failures=99), []
    for _ in range(9):
        fail(attempts, [(0, 0)])
        pauses.append(attempts.delay_s)
    assert pauses == [0, 2, 4, 8, 16, 32, 60, 60, 60]
    fail(attempts, [(0, 1)])
    assert attempts.delay_s == 0


def test_each_start_and_end_is_a_line_and_numbers_go_on(tmp_path: Path) -> None:
    fail(Attempts(tmp_path, max_failures=3), [(0, 4), (4, 4)])
    with (tmp_path / "attempts.jsonl").open("a") as f:
        f.write('{"event": "started", "attem')  # the driver was killed here
    again = Attempts(tmp_path, max_failures=3)
    again.started(workers=1, step=4)
    again.ended("done", 8)
    rows = read_attempts(tmp_path)
    assert [(r["event"], r["attempt"], r["step"]) for r in rows] == [
        ("started", 1, 0),
        ("ended", 1, 4),
        ("started", 2, 4),
        ("ended", 2, 4),
        ("started", 3, 4),
        ("ended", 3, 8),
    ]
    assert (rows[1]["kind"], rows[1]["ranks"], rows[1]["seconds"] >= 0) == (KILLED, [1], True)
    assert (rows[-2]["workers"], rows[-1]["kind"]) == (1, "done")


@pytest.mark.parametrize(
    "foreign",
    [b"\xff\xfe\n", b"{}\n", b"[1}\n", b'[{"event": "started"}]\n', b'{"event": [1]}', b"7"],
)
def test_a_record_that_is_damaged_ends_no_run(tmp_path: Path, foreign: bytes) -> None:
    (tmp_path / "attempts.jsonl").write_bytes(foreign)
    Attempts(tmp_path, max_failures=3).started(workers=1, step=4)
    assert [row["attempt"] for row in read_attempts(tmp_path)] == [1]


def test_a_record_that_can_not_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "attempts.jsonl").mkdir()
    attempts = Attempts(tmp_path, max_failures=3)
    attempts.started(workers=1, step=4)
    assert (attempts.number, read_attempts(tmp_path)) == (1, [])


def test_a_failure_is_told_in_a_line(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, max_failures=1)
    fail(attempts, [(0, 4)])
    assert attempt_line(DEAD, attempts, 4) == (
        "attempt 1 ended (newest checkpoint: step 4): worker killed: rank 1: gone; starting again "
        "(1 of workers.max_failures 1 in a row)"
    )
    fail(attempts, [(4, 4)])
    assert attempt_line(DEAD, attempts, 4).endswith(
        "given up: 2 failures in a row without a new checkpoint"
    )
    assert attempts.summary().startswith("failures: 2 x worker killed (see ")
    assert Attempts(tmp_path, max_failures=1).summary() == ""
