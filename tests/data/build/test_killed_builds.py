"""A build that is killed anywhere is never half-visible; the next one goes on and gives the same
bytes as one that was never killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtdist.config import ResourceError, to_mapping
from xtdist.data import LocalRunner, PrepareConfig, Progress, TokenDataset, prepare, read_manifest
from xtdist.data.build.work import work_folder, workspace

Make = Callable[..., PrepareConfig]

# One interpreter that forks a builder per kill point, each shot by SIGKILL from inside.
KILLER = """
import json, os, signal, sys
from pathlib import Path
from typing import Any
import matplotlib.figure, matplotlib.backends.backend_agg
from xtdist.config import from_mapping
from xtdist.data import PrepareConfig, prepare

def build(config, kind, at):
    count, output = 0, Path(config.output)
    def tick():
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
    name = "rename" if kind == "publish" else kind
    plain = getattr(os, name, None)
    def counted(*args, **kwargs):
        if kind != "publish" or output in args:
            tick()
        return plain(*args, **kwargs)
    if plain:
        setattr(os, name, counted)
    prepare(config, lambda progress: tick() if progress.stage == kind else None)

for line in sys.stdin:
    tree, points = json.loads(line)
    config = from_mapping(PrepareConfig, tree)
    folder, rounds = Path(config.output).parent, []
    for kind, at in points:
        child = os.fork()
        if child == 0:
            build(config, kind, at)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        receipts = len(list(folder.glob(".*/*/receipt-*.json")))
        rounds.append([killed, sorted(p.name for p in folder.iterdir()), receipts])
    print(json.dumps(rounds), flush=True)
"""
BUILD = """
import json, sys
from xtdist.config import from_mapping
from xtdist.data import PrepareConfig, prepare
prepare(from_mapping(PrepareConfig, json.loads(sys.argv[1])))
"""
Kill = Callable[[PrepareConfig, list[tuple[str, int]]], list[list[object]]]


@pytest.fixture(scope="module")
def kill_at() -> Iterator[Kill]:
    """Builds until each of the points, one after the other; tells whether it was killed there, what
    is in the folder then, and how many units are finished."""
    command = [sys.executable, "-c", KILLER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as killer:

        def kill(config: PrepareConfig, points: list[tuple[str, int]]) -> list[list[object]]:
            assert killer.stdin
            assert killer.stdout
            killer.stdin.write(json.dumps([to_mapping(config), points]) + "\n")
            killer.stdin.flush()
            rounds: list[list[object]] = json.loads(killer.stdout.readline())
            return rounds

        yield kill


def same_files(one: Path, other: Path) -> bool:
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in other.iterdir())
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_a_build_killed_at_ten_points_goes_on_and_ends_with_the_same_bytes(
    kill_at: Kill, units: Make, built_of_units: Path, tmp_path: Path
) -> None:
    config = units(tmp_path / "d")
    points = [("scan", 1), ("scan", 70), ("replace", 5), ("tokenizer", 20), ("replace", 6)]
    points += [("encode", 40), ("fsync", 4), ("encode", 30), ("replace", 3), ("encode", 25)]
    rounds = kill_at(config, points)
    assert all(killed for killed, _, _ in rounds), rounds
    assert all(names == [".d.build"] for _, names, _ in rounds)
    finished = [receipts for _, _, receipts in rounds]
    assert finished == sorted(finished), finished  # what is finished stays finished
    report = prepare(config)
    assert not report.reused
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert same_files(tmp_path / "d", built_of_units)


@pytest.mark.long
def test_a_build_with_two_workers_killed_fifty_times_ends_with_the_same_bytes(
    units: Make, built_of_units: Path, tmp_path: Path
) -> None:
    config = units(tmp_path / "d", runner=LocalRunner(workers=2))
    command = [sys.executable, "-c", BUILD, json.dumps(to_mapping(config))]
    rng = np.random.default_rng(0)
    start = time.monotonic()
    subprocess.run(command, check=True)
    whole_s = time.monotonic() - start
    assert same_files(tmp_path / "d", built_of_units)
    for _ in range(50):
        if (tmp_path / "d").exists():
            assert same_files(tmp_path / "d", built_of_units)
            for path in (tmp_path / "d").iterdir():
                path.unlink()
            (tmp_path / "d").rmdir()
        child = subprocess.Popen(command)
        time.sleep(rng.uniform(0.5, 1.0) * whole_s)
        child.kill()
        child.wait()
        assert {p.name for p in tmp_path.iterdir()} <= {"d", ".d.build"}
    prepare(config)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert same_files(tmp_path / "d", built_of_units)


def test_a_second_kill_does_not_encode_finished_units_again(
    kill_at: Kill, units: Make, tmp_path: Path
) -> None:
    config = units(tmp_path / "d")
    (_, _, receipts), *_ = kill_at(config, [("publish", 1)])  # all done but published
    assert receipts == len(list(work_folder(tmp_path / "d").glob("*/scan-*.json"))) > 3
    before = {
        p.name: p.stat().st_ino for p in work_folder(tmp_path / "d").glob("*/dataset/*.arrow")
    }
    damaged = next(work_folder(tmp_path / "d").glob("*/dataset/train-00002-*.arrow"))
    raw = bytearray(damaged.read_bytes())
    raw[len(raw) // 2] ^= 1
    damaged.write_bytes(raw)
    prepare(config)
    after = {p.name: p.stat().st_ino for p in (tmp_path / "d").glob("*.arrow")}
    assert before.keys() == after.keys()
    again = {name for name in before if before[name] != after[name]}
    assert again == {name for name in before if "-00002-" in name}  # only the damaged unit
    for split in ("train", "valid"):
        TokenDataset.open(tmp_path / "d", split, verify="full")


def test_another_plan_starts_over(
    kill_at: Kill, units: Make, built_of_units: Path, tmp_path: Path
) -> None:
    kill_at(units(tmp_path / "d", shard_tokens=900), [("publish", 1)])
    prepare(units(tmp_path / "d"))
    assert same_files(tmp_path / "d", built_of_units)


def test_what_replace_puts_away_comes_back_when_the_builder_dies_in_between(
    kill_at: Kill, units: Make, dataset: Path
) -> None:
    old = read_manifest(dataset).dataset_id
    config = units(dataset, replace=True)
    ((killed, names, _),) = kill_at(config, [("publish", 2)])
    assert killed
    assert names == [".dataset.build"]
    with workspace(dataset):
        assert read_manifest(dataset).dataset_id == old
    report = prepare(config)
    assert report.dataset_id == read_manifest(dataset).dataset_id != old


def test_only_one_builds_at_a_time_and_a_dead_builder_is_not_waited_for(
    settings: Make, tmp_path: Path
) -> None:
    with workspace(tmp_path / "d"):
        who = f"process {os.getpid()} on "
        with pytest.raises(ResourceError, match=f"d is being built by {who}.*run again"):
            prepare(settings(tmp_path / "d"))
        prepare(settings(tmp_path / "other"))
    prepare(settings(tmp_path / "d"))


def test_a_dataset_that_appears_meanwhile_is_not_overwritten(
    settings: Make, dataset: Path, tmp_path: Path
) -> None:
    def intrude(progress: Progress) -> None:
        if progress.stage == "encode" and not (tmp_path / "d").exists():
            shutil.copytree(dataset, tmp_path / "d")

    theirs = read_manifest(dataset).dataset_id
    with pytest.raises(ResourceError, match="output"):
        prepare(settings(tmp_path / "d", shard_tokens=5000), intrude)
    assert read_manifest(tmp_path / "d").dataset_id == theirs


def test_an_interrupted_build_goes_on(units: Make, built_of_units: Path, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.stage == "encode" and progress.done_bytes > progress.total_bytes // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(units(tmp_path / "d"), interrupt)
    assert [p.name for p in tmp_path.iterdir()] == [".d.build"]
    stages: list[tuple[str, int]] = []
    prepare(units(tmp_path / "d"), lambda p: stages.append((p.stage, p.done_bytes)))
    assert "tokenizer" not in dict(stages)  # it was trained already
    assert same_files(tmp_path / "d", built_of_units)


def test_workers_end_when_their_builder_is_killed(units: Make, tmp_path: Path) -> None:
    config = units(tmp_path / "d", runner=LocalRunner(workers=2))
    code = f"""
import json, os, sys, time
from xtdist.config import from_mapping
from xtdist.data import PrepareConfig, prepare
config = from_mapping(PrepareConfig, json.loads({json.dumps(to_mapping(config))!r}))
def tell(progress):
    if progress.stage == "encode":
        print(open(f"/proc/self/task/{{os.getpid()}}/children").read(), flush=True)
        time.sleep(60)
prepare(config, tell)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    workers = [int(pid) for pid in child.stdout.readline().split()]
    assert len(workers) == 2
    child.send_signal(signal.SIGKILL)
    child.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("receipt", {"lengths": lambda counts: [1, *counts[1:]]}),
        ("receipt", {"splits": lambda s: {k: [{**i, "docs": 9} for i in v] for k, v in s.items()}}),
        ("scan", {"inputs": lambda inputs: dict.fromkeys(inputs, "0" * 64)}),
        ("scan", {"unreadable": lambda count: count + 1}),
    ],
)
def test_what_a_receipt_says_is_not_taken_from_a_changed_one(
    units: Make, built_of_units: Path, tmp_path: Path, what: str, changes: dict[str, Any]
) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "encode" and progress.done_bytes > progress.total_bytes // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(units(tmp_path / "d"), stop)
    path = min(tmp_path.glob(f".d.build/*/{what}-*.json"))
    tree = json.loads(path.read_text())
    said = tree.get("receipt", tree)
    for key, change in changes.items():
        said[key] = change(said[key])
    path.write_text(json.dumps(tree))
    prepare(units(tmp_path / "d"))
    assert same_files(tmp_path / "d", built_of_units)
