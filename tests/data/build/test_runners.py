"""The same dataset whatever works on it, and workers that fail."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path

import pytest

from xtdist.config import DataError, ResourceError
from xtdist.data import LocalRunner, PrepareConfig, RayRunner, prepare
from xtdist.data.build.processes import Processes
from xtdist.data.build.worker import serve

Make = Callable[..., PrepareConfig]


@dataclass(frozen=True)
class Fails:
    """Work that goes wrong in the way that ``how`` says."""

    name: str
    how: str

    def __call__(self, advance: Callable[[int], None]) -> str:
        advance(7)
        if self.how == "data":
            raise DataError(f"{self.name} is bad")
        if self.how == "disk":
            raise OSError(28, "No space left on device")
        if self.how == "bug":
            raise KeyError("oh")
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.name


def same_files(one: Path, other: Path) -> bool:
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in other.iterdir())
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_two_processes_make_the_dataset_that_one_makes(
    units: Make, built_of_units: Path, tmp_path: Path
) -> None:
    done: list[int] = []
    config = units(tmp_path / "d", runner=LocalRunner(workers=2))
    prepare(config, lambda p: done.append(p.done_bytes) if p.stage == "encode" else None)
    assert same_files(tmp_path / "d", built_of_units)
    assert done == sorted(done)


def test_results_come_in_order_and_a_worker_that_dies_is_said_with_its_unit() -> None:
    with Processes(2) as runner:
        done: list[int] = []
        names = runner.run([Fails(str(i), "") for i in range(5)], done.append)
        assert names == ["0", "1", "2", "3", "4"]
        assert sum(done) == 35
        tasks = [Fails("a", ""), Fails("b", ""), Fails("unit three", "killed")]
        with pytest.raises(ResourceError, match=r"died \(signal 9\) on unit three; out of memory"):
            runner.run(tasks, done.append)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("data", DataError, "unit three is bad"),
        ("disk", OSError, "No space left"),
        ("bug", RuntimeError, r"failed on unit three[\s\S]*KeyError: 'oh'"),
    ],
)
def test_a_worker_answers_with_what_went_wrong(
    how: str, error: type[Exception], message: str
) -> None:
    ours, theirs = Pipe()
    ours.send(Fails("unit three", how))
    ours.send(Fails("next", ""))
    thread = threading.Thread(target=serve, args=(theirs,))
    thread.start()
    kind, what = ours.recv()
    with pytest.raises(error, match=message):
        raise what
    assert [ours.recv(), ours.recv()] == [("advance", 7), ("done", "next")]
    ours.close()
    thread.join(10)
    assert (kind, thread.is_alive()) == ("failed", False)


def test_ray_without_a_cluster_is_refused(units: Make, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"needs a Ray cluster.*ray\.init"):
        prepare(units(tmp_path / "d", runner=RayRunner()))
    assert list(tmp_path.iterdir()) == []
