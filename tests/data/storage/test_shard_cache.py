"""The cache keeps its limit and its promises with many processes, any of which may be killed."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from xtdist.config import DataError, ResourceError
from xtdist.data.storage import cache as cache_module
from xtdist.data.storage.cache import ShardCache
from xtdist.data.storage.config import CacheConfig

SIZE = 4096
SHARDS = [bytes([i]) * (SIZE - i) for i in range(12)]
STEPS = ("open", "ftruncate", "posix_fallocate", "fsync", "stat", "utime")


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def cache_of(folder: Path, shards: float) -> ShardCache:
    """A cache with room for that many shards."""
    return ShardCache(CacheConfig(folder=str(folder), limit_gb=shards * SIZE / 1e9))


def take(cache: ShardCache, data: bytes, fetched: list[str] | None = None) -> Path:
    def fetch(out: BinaryIO) -> None:
        out.write(data[: SIZE // 2])
        out.write(data[SIZE // 2 :])
        if fetched is not None:
            fetched.append(name_of(data))

    return cache.acquire(name_of(data), len(data), fetch)


def in_child(action: Callable[[], None]) -> int:
    """The id of a process that does ``action``; exit code 0 if it returned."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def end_of(child: int) -> int:
    """0, 1, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache, fetched = cache_of(tmp_path, 3), list[str]()
    for step, i in enumerate((0, 1, 2, 0, 3, 0, 1)):
        path = take(cache, SHARDS[i], fetched)
        assert path.read_bytes() == SHARDS[i]
        os.utime(path, (step, step))  # clocks of file systems are coarse
        cache.release(name_of(SHARDS[i]))
    assert fetched == [name_of(SHARDS[i]) for i in (0, 1, 2, 3, 1)]


def test_what_is_held_is_never_taken_and_the_error_names_the_limit(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 2)
    held = [take(cache, SHARDS[i]) for i in (0, 1)]
    with pytest.raises(ResourceError, match=r"cache\.limit_gb: .* too few"):
        take(cache, SHARDS[2])
    assert [p.read_bytes() for p in held] == SHARDS[:2]
    take(cache, SHARDS[0])  # held twice: one release keeps it
    cache.release(name_of(SHARDS[0]))
    with pytest.raises(ResourceError):
        take(cache, SHARDS[2])
    cache.release(name_of(SHARDS[0]))
    assert take(cache, SHARDS[2]).exists()
    assert files(tmp_path) == sorted([held[1], *tmp_path.rglob(f"{name_of(SHARDS[2])}.arrow")])


def test_another_process_that_reads_keeps_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "ROOM_WAIT_S", 0.2)
    ready, told = os.pipe()

    def read_until_killed() -> None:
        cache = cache_of(tmp_path, 1)
        take(cache, SHARDS[0])
        os.write(told, b"x")
        time.sleep(30)

    reader = in_child(read_until_killed)
    os.read(ready, 1)
    cache = cache_of(tmp_path, 1)
    with pytest.raises(ResourceError, match=r"cache\.limit_gb"):
        take(cache, SHARDS[1])
    os.kill(reader, signal.SIGKILL)
    end_of(reader)
    take(cache, SHARDS[1])
    assert [p.stem for p in files(tmp_path)] == [name_of(SHARDS[1])]


def test_a_waiter_gets_room_when_another_lets_go(tmp_path: Path) -> None:
    first, second = cache_of(tmp_path, 1), cache_of(tmp_path, 1)
    take(first, SHARDS[0])
    threading.Timer(0.2, lambda: first.release(name_of(SHARDS[0]))).start()
    assert take(second, SHARDS[1]).read_bytes() == SHARDS[1]


def snapshot_bytes(folder: Path) -> int:
    """All files together at one moment: under the lock that room is made with."""
    with open(folder / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        total = 0
        for path in files(folder):
            try:
                total += path.stat().st_size
            except FileNotFoundError:  # a failed or taken one: files go at any time
                continue
        return total


def check_limit_among_processes(tmp_path: Path, *, rounds: int, processes: int = 4) -> None:
    room = 2 * processes

    def work(seed: int) -> None:
        rng, cache, held = np.random.default_rng(seed), cache_of(tmp_path, room), []
        for i in rng.integers(len(SHARDS), size=rounds):
            with open(take(cache, SHARDS[i]), "rb") as file:
                held.append((i, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
            assert all(bytes(m) == SHARDS[j] for j, m in held)
            if len(held) > 1:
                j, mapped = held.pop(0)
                mapped.close()
                cache.release(name_of(SHARDS[j]))

    cache_of(tmp_path, room)
    children = [in_child(lambda seed=seed: work(seed)) for seed in range(processes)]  # type: ignore[misc]
    most, left = 0, set(children)
    while left:
        most = max(most, snapshot_bytes(tmp_path))
        for child in list(left):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                left.remove(child)
                assert status == 0
        time.sleep(0.001)
    assert SIZE < most <= room * SIZE
    assert {p.suffix for p in files(tmp_path)} == {".arrow"}


def test_several_processes_never_exceed_the_limit_nor_break_a_reader(tmp_path: Path) -> None:
    check_limit_among_processes(tmp_path, rounds=60)


@pytest.mark.long
def test_many_processes_never_exceed_the_limit_nor_break_a_reader(tmp_path: Path) -> None:
    check_limit_among_processes(tmp_path, rounds=2000, processes=5)


def test_one_downloader_is_elected_and_the_others_get_its_file(tmp_path: Path) -> None:
    counts = tmp_path / "count"
    counts.touch()

    def slow(out: BinaryIO) -> None:
        with open(counts, "a") as file:
            file.write("x")
        time.sleep(0.3)
        out.write(SHARDS[0])

    def work() -> None:
        cache = cache_of(tmp_path / "cache", 2)
        path = cache.acquire(name_of(SHARDS[0]), len(SHARDS[0]), slow)
        assert path.read_bytes() == SHARDS[0]

    children = [in_child(work) for _ in range(6)]
    assert [end_of(child) for child in children] == [0] * 6
    assert counts.read_text() == "x"


def dies_at(step: int) -> Callable[..., Any]:
    """Makes every system call that the cache makes count; SIGKILL before the one numbered so."""
    done = [0]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            done[0] += 1
            if done[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    return counted


def child_that_dies(folder: Path, step: int) -> int:
    def work() -> None:
        counted = dies_at(step)
        cache = cache_of(folder, 1)
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        fcntl.flock = counted(fcntl.flock)
        Path.rename, Path.unlink = counted(Path.rename), counted(Path.unlink)  # type: ignore[method-assign]
        write = counted(lambda out, data: out.write(data))

        def fetch(out: BinaryIO) -> None:
            write(out, SHARDS[1][:100])
            write(out, SHARDS[1][100:])

        cache.acquire(name_of(SHARDS[1]), len(SHARDS[1]), fetch)

    return end_of(in_child(work))


def test_killed_at_any_system_call_leaves_nothing_that_stops_the_next(tmp_path: Path) -> None:
    step, killed = 1, -signal.SIGKILL
    while killed == -signal.SIGKILL:
        folder = tmp_path / str(step)
        first = cache_of(folder, 1)
        take(first, SHARDS[0])  # fills the cache: the dying one must make room
        first.release(name_of(SHARDS[0]))
        killed = child_that_dies(folder, step)
        again = cache_of(folder, 1)
        assert not [p for p in files(folder) if p.suffix == ".part"]  # swept when opened
        want = SHARDS[1] if step % 2 else SHARDS[2]  # the same shard, or another one
        assert take(again, want).read_bytes() == want
        assert [p.stem for p in files(folder)] == [name_of(want)]
        step += 1
    assert killed == 0
    assert step > 20


def test_a_waiter_takes_over_from_a_killed_downloader(tmp_path: Path) -> None:
    ready, told = os.pipe()

    def stuck(out: BinaryIO) -> None:
        out.write(b"half")
        os.write(told, b"x")
        time.sleep(30)

    downloader = in_child(
        lambda: cache_of(tmp_path, 1).acquire(name_of(SHARDS[0]), len(SHARDS[0]), stuck) and None
    )
    os.read(ready, 1)
    threading.Timer(0.2, lambda: os.kill(downloader, signal.SIGKILL)).start()
    assert take(cache_of(tmp_path, 1), SHARDS[0]).read_bytes() == SHARDS[0]
    assert end_of(downloader) == -signal.SIGKILL
    assert [p.suffix for p in files(tmp_path)] == [".arrow"]


def test_a_download_that_stands_still_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "STALLED_S", 0.1)
    part = tmp_path / name_of(SHARDS[0])[:2] / f"{name_of(SHARDS[0])}.part"
    part.parent.mkdir()
    with open(part, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ResourceError, match=r"\.part: another process began this download"):
            take(cache_of(tmp_path, 1), SHARDS[0])


def test_a_failed_download_leaves_nothing(tmp_path: Path) -> None:
    def fails(out: BinaryIO) -> None:
        out.write(b"half")
        raise DataError("no such object")

    cache = cache_of(tmp_path, 1)
    with pytest.raises(DataError, match="no such object"):
        cache.acquire(name_of(SHARDS[0]), len(SHARDS[0]), fails)
    assert files(tmp_path) == []
    assert take(cache, SHARDS[0]).exists()


def test_a_full_disk_is_said_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match=r"cache\.folder: no space left"):
        take(cache_of(tmp_path, 1), SHARDS[0])
    assert files(tmp_path) == []


def test_a_name_that_is_no_hash_never_becomes_a_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a sha256"):
        cache_of(tmp_path, 1).acquire("../../etc", 1, lambda out: None)


def test_threads_share_one_download(tmp_path: Path) -> None:
    cache, fetched, paths = cache_of(tmp_path, 1), list[str](), list[Path]()
    threads = [
        threading.Thread(target=lambda: paths.append(take(cache, SHARDS[0], fetched)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert len(paths) == 8
    assert len(fetched) == 1
    for _ in range(8):
        cache.release(name_of(SHARDS[0]))
    assert take(cache, SHARDS[1]).exists()
