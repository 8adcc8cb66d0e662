"""A disk that is full, or fills up: a clear error, nothing visible, and the next build goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xtdist.config import ResourceError, to_mapping
from xtdist.data import JsonlSource, LocalRunner, PrepareConfig, prepare
from xtdist.data import shards as shards_module
from xtdist.data.build.duplicates import sort_out
from xtdist.data.build.scan import Scan
from xtdist.data.build.work import Work
from xtdist.data.sources import plan_units

Make = Callable[..., PrepareConfig]


def test_too_little_disk_space_is_said_before_anything_is_written(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(ResourceError, match=r"needs about \d+ MB, 1 MB are free"):
        prepare(settings(tmp_path / "d"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_while_writing_shows_nothing_and_the_next_build_goes_on(
    units: Make,
    built_of_units: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    written = 0
    plain = shards_module._HashingFile.write

    def full(self: shards_module._HashingFile, data: object) -> int:
        nonlocal written
        written += 1
        if written > 150:
            raise OSError(code, os.strerror(code))
        return plain(self, data)

    monkeypatch.setattr(shards_module._HashingFile, "write", full)
    message = r"no space left on the disk .* needs about \d+ MB.*run again \(finished parts are"
    with pytest.raises(ResourceError, match=message):
        prepare(units(tmp_path / "d"))
    assert [p.name for p in tmp_path.iterdir()] == [".d.build"]
    finished = {p.name: p.stat().st_ino for p in tmp_path.glob(".d.build/*/dataset/*.arrow")}
    assert len(finished) > 2
    monkeypatch.undo()
    prepare(units(tmp_path / "d"))
    for path in built_of_units.iterdir():
        assert (tmp_path / "d" / path.name).read_bytes() == path.read_bytes()
    for name, inode in finished.items():
        assert (tmp_path / "d" / name).stat().st_ino == inode


def test_a_disk_without_room_for_one_unit_is_left_as_it_was(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards_module._HashingFile, "write", full)
    with pytest.raises(ResourceError, match="no space left"):
        prepare(settings(tmp_path / "d"))
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_the_size_of_files_is_said(units: Make, tmp_path: Path) -> None:
    code = """
import json, resource, sys
from xtdist.config import ResourceError, from_mapping
from xtdist.data import PrepareConfig, prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    prepare(from_mapping(PrepareConfig, json.loads(sys.argv[1])))
except ResourceError as e:
    print(e)
"""
    config = json.dumps(to_mapping(units(tmp_path / "d")))
    out = subprocess.run([sys.executable, "-c", code, config], capture_output=True, text=True)
    assert f"can't write in {tmp_path} (File too large)" in out.stdout
    assert not (tmp_path / "d").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 24 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)])
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_real_full_disk_shows_nothing_and_the_build_goes_on_once_there_is_room(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(json.dumps({"text": f"{i} " + "abcdefgh" * 3000}) + "\n" for i in range(160))
    (tmp_path / "text.jsonl").write_text(text)
    config = PrepareConfig(
        output=str(small_disk / "d"),
        source=JsonlSource(path=str(tmp_path / "text.jsonl")),
        tokenizer={"kind": "byte"},  # type: ignore[arg-type]
        unit_bytes=400_000,
        valid_fraction=0.2,
        runner=LocalRunner(workers=1),
    )
    (small_disk / "ballast").write_bytes(bytes(20 * 2**20))
    monkeypatch.setattr("xtdist.data.build.work.Workspace.check_space", lambda *_: None)
    with pytest.raises(ResourceError, match="no space left on the disk"):
        prepare(config)
    assert sorted(p.name for p in small_disk.iterdir()) == [".d.build", "ballast"]
    finished = {p.name: p.stat().st_ino for p in small_disk.glob(".d.build/*/dataset/*.arrow")}
    assert finished
    (small_disk / "ballast").unlink()
    prepare(config)
    assert [p.name for p in small_disk.iterdir()] == ["d"]
    for name, inode in finished.items():
        assert (small_disk / "d" / name).stat().st_ino == inode


def test_a_place_where_nothing_can_be_written_is_named(settings: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match=r"can't write in .*file"):
        prepare(settings(tmp_path / "file" / "d"))


@pytest.mark.parametrize("what", ["rows", "codes"])
def test_a_disk_that_fills_up_before_encoding_is_known_to_be_full(
    units: Make, tmp_path: Path, what: str
) -> None:
    """``/dev/full`` takes no byte, as a full disk."""
    config, root = units(tmp_path / "d"), tmp_path / "work"
    unit = plan_units(config.source, 10**9)[0]
    work = Work(root, "0" * 64)
    work.folder.mkdir(parents=True)
    scan = Scan(source=config.source, unit=unit, work=work)
    work.path(*{"rows": ("scan", 0, ".rows"), "codes": ("codes", 0)}[what]).symlink_to("/dev/full")
    with pytest.raises(OSError, match="space") as e:
        sort_out(work, [scan(lambda _: None)], valid_fraction=0.1)
    assert e.value.errno == errno.ENOSPC
