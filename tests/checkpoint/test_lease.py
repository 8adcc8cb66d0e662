"""Exactly one process may write a run, and one that was cut off can't commit any more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from xtdist.checkpoint.claims import FOLDER, beat_file, epoch_file
from xtdist.checkpoint.lease import FencedError, Lease, check_epoch
from xtdist.config import ResourceError

BRIEF = 0.4


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def test_a_second_owner_is_refused_and_told_who_holds_it(place: str) -> None:
    with Lease(place, expiry_s=4 * BRIEF) as lease:
        assert lease.epoch == 1
        with pytest.raises(ResourceError, match=rf"process {os.getpid()} on host .* since \d+ s"):
            Lease(place, expiry_s=8 * BRIEF).acquire()
        lease.check()
        assert not lease.lost


def test_after_a_release_the_next_owner_need_not_wait(place: str) -> None:
    for epoch in range(1, 4):
        began = time.monotonic()
        with Lease(place, expiry_s=100) as lease:
            assert lease.epoch == epoch
        assert time.monotonic() - began < 50


def test_an_owner_that_sleeps_past_its_expiry_is_fenced(place: str) -> None:
    sleeper = Lease(place, expiry_s=BRIEF)
    sleeper.acquire()
    sleeper._stop.set()  # its heart stops
    with Lease(place, expiry_s=BRIEF) as lease:
        assert lease.epoch == 2
        lease.check()
        with pytest.raises(FencedError, match="epoch 2, ours is 1"):
            sleeper.check()
        sleeper._try_to_beat("held")
        assert sleeper.lost
        assert not lease.lost
        check_epoch(place, 0)  # a process without a lease is nobody's rival


def test_a_holder_that_was_killed_on_this_host_is_followed_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from xtdist.checkpoint.lease import Lease\n"
        f"Lease({str(tmp_path)!r}, expiry_s=1000).acquire(); print('held', flush=True)\n"
        "time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    child.kill()
    child.wait()
    with Lease(tmp_path, expiry_s=1000) as lease:  # would wait far beyond any test's limit
        assert lease.epoch == 2


def test_a_pid_that_is_used_again_is_not_its_holder(tmp_path: Path) -> None:
    lease = Lease(tmp_path, expiry_s=1000)
    lease.acquire()
    lease._stop.set()
    claim = tmp_path / FOLDER / epoch_file(1)
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "born": "1"}))
    assert Lease(tmp_path, expiry_s=1000).acquire() == 2


def test_clocks_that_disagree_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lease(tmp_path, expiry_s=4 * BRIEF):
        for path in (tmp_path / FOLDER).iterdir():
            os.utime(path, (0, 0))  # as by a host that lives in 1970
        monkeypatch.setattr(time, "time", lambda: 4e9)
        with pytest.raises(ResourceError, match="is training this run"):
            Lease(tmp_path, expiry_s=4 * BRIEF).acquire()


def race(place: str, count: int) -> list[int]:
    """The epochs that ``count`` threads got, which all want the same lease at once."""
    barrier, won = threading.Barrier(count), []

    def contend() -> None:
        # Long: on a busy machine a holder's beat may be late, and then it is rightly followed.
        lease = Lease(place, expiry_s=10 * BRIEF)
        barrier.wait()
        try:
            won.append(lease.acquire())
        except ResourceError:
            return
        held.append(lease)

    held: list[Lease] = []
    threads = [threading.Thread(target=contend) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lease in held:
        lease.release()
    return won


@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.long)])
def test_of_many_that_start_at_once_exactly_one_wins(place: str, rounds: int) -> None:
    assert [race(place, 4) for _ in range(rounds)] == [[n] for n in range(1, rounds + 1)]


def test_old_epochs_are_forgotten_and_numbers_still_grow(tmp_path: Path) -> None:
    for epoch in range(1, 40):
        with Lease(tmp_path, expiry_s=100) as lease:
            assert lease.epoch == epoch
    names = {p.name for p in (tmp_path / FOLDER).iterdir()}
    assert {epoch_file(39), beat_file(39)} <= names
    assert len(names) < 50
