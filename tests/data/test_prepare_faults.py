"""A build that is killed or runs out of disk leaves no dataset, and the next one completes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from xtdist.config import ResourceError, to_mapping
from xtdist.data import PrepareConfig, TokenDataset, prepare, read_manifest
from xtdist.data import shards as shards_module
from xtdist.data.staging import staged

Make = Callable[..., PrepareConfig]

# One interpreter that forks a builder per kill point, each shot by SIGKILL from inside.
KILLER = """
import json, os, signal, sys
from pathlib import Path
from xtdist.config import from_mapping
from xtdist.data import PrepareConfig, prepare
from xtdist.data.manifest import MANIFEST_FILE

config = from_mapping(PrepareConfig, json.loads(sys.argv[1]))
output = Path(config.output)
die = lambda: os.kill(os.getpid(), signal.SIGKILL)

def build(kind, at):
    count = 0
    def tick(*_):
        nonlocal count
        count += 1
        if count == at:
            die()
    if kind == "progress":
        return prepare(config, tick)
    plain = getattr(os, kind)
    def counted(*args, **kwargs):
        tick()
        return plain(*args, **kwargs)
    setattr(os, kind, counted)
    return prepare(config)

for kind, at in json.loads(sys.argv[2]):
    child = os.fork()
    if child == 0:
        build(kind, at)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    names = sorted(p.name for p in output.parent.iterdir())
    print(json.dumps([kind, at, os.WIFSIGNALED(status), names]))
"""


def test_a_build_killed_anywhere_leaves_no_dataset_and_the_next_completes(
    settings: Make, built: Path, tmp_path: Path
) -> None:
    config = settings(tmp_path / "d")
    shards = sum(len(s) for s in read_manifest(built).splits.values())
    points = [("progress", at) for at in (1, 60, 125, 200, 225, 290, 330)]
    points += [("rename", at) for at in (1, 3, 5)] + [("fsync", at) for at in (2, 6)]
    points += [("rename", shards + 1)]  # all but published
    out = subprocess.run(
        [sys.executable, "-c", KILLER, json.dumps(to_mapping(config)), json.dumps(points)],
        capture_output=True,
        text=True,
        check=True,
    )
    rounds = [json.loads(line) for line in out.stdout.splitlines()]
    assert [tuple(r[:2]) for r in rounds] == points
    assert all(killed for _, _, killed, _ in rounds)
    for _, _, _, names in rounds:
        assert "d" not in names
        assert len(names) <= 1  # what the last one left; the one before was cleaned up
        assert all(name.startswith(".d.build-") for name in names)
    (left,) = tmp_path.iterdir()
    assert (left / "manifest.json").exists()
    report = prepare(config)
    assert not report.reused
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    for path in built.iterdir():
        assert (tmp_path / "d" / path.name).read_bytes() == path.read_bytes()


def test_a_build_that_is_running_is_not_cleaned_up_by_another(
    settings: Make, tmp_path: Path
) -> None:
    config = settings(tmp_path / "d")
    with staged(tmp_path / "d", needed_bytes=0) as folder:
        (folder / "work").write_text("in progress")
        prepare(config)
        assert (folder / "work").read_text() == "in progress"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_dataset_that_appears_meanwhile_is_not_overwritten(
    settings: Make, dataset: Path, tmp_path: Path
) -> None:
    config = settings(tmp_path / "d", shard_tokens=5000)

    def intrude(progress: object) -> None:
        if not (tmp_path / "d").exists():
            shutil.copytree(dataset, tmp_path / "d")

    theirs = read_manifest(dataset).dataset_id
    with pytest.raises(ResourceError, match="output"):
        prepare(config, lambda p: intrude(p) if p.stage == "encode" else None)
    assert read_manifest(tmp_path / "d").dataset_id == theirs


def test_too_little_disk_space_is_said_before_anything_is_written(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(ResourceError, match=r"needs about \d+ MB, 1 MB are free"):
        prepare(settings(tmp_path / "d"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_while_writing_leaves_nothing(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    written = 0
    plain = shards_module._HashingFile.write

    def full(self: shards_module._HashingFile, data: object) -> int:
        nonlocal written
        written += 1
        if written > 30:
            raise OSError(code, os.strerror(code))
        return plain(self, data)

    monkeypatch.setattr(shards_module._HashingFile, "write", full)
    with pytest.raises(ResourceError, match=r"no space left on the disk .* needs about \d+ MB"):
        prepare(settings(tmp_path / "d"))
    assert written > 30
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert not prepare(settings(tmp_path / "d")).reused


def test_a_place_where_nothing_can_be_written_is_named(settings: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match=r"can't write in .*file"):
        prepare(settings(tmp_path / "file" / "d"))


def test_interrupting_a_build_leaves_nothing(settings: Make, tmp_path: Path) -> None:
    def interrupt(progress: object) -> None:
        if getattr(progress, "stage", "") == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(settings(tmp_path / "d"), interrupt)
    assert list(tmp_path.iterdir()) == []
    prepare(settings(tmp_path / "d"))
    TokenDataset.open(tmp_path / "d", verify="full")
