"""Whatever is done to a save or to its files, the newest checkpoint that loads is a whole one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtdist.checkpoint import CheckpointStore, Lease, Missed, Ranks, Saved, Saver
from xtdist.checkpoint.layout import MANIFEST
from xtdist.checkpoint.lease import check_epoch
from xtdist.checkpoint.saver import Shared, Writer
from xtdist.config import CheckpointError

BRIEF = 0.2


def writer(content: bytes) -> Writer:
    return lambda path: (path.write_bytes(content), None)[1]


def save(store: CheckpointStore, step: int, *, attempt: str = "a0", **keywords: Any) -> Any:
    saver = Saver(store, attempt=attempt, **keywords)
    files = {f"state/{i}.bin": writer(bytes([i, step]) * 20) for i in range(3)}
    saver.submit(step, files, {"note": "ü"})
    assert saver.wait(60)
    (ended,) = saver.poll()
    return ended


@pytest.fixture(params=["local", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def damage(path: Path, rng: np.random.Generator) -> str:
    """Change a file in one of four ways; which one."""
    raw, kind = bytearray(path.read_bytes()), str(rng.choice(["flip", "cut", "delete", "extend"]))
    if kind == "delete":
        path.unlink()
        return kind
    if kind == "flip":
        raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del raw[rng.integers(len(raw)) :]
    else:
        raw += rng.bytes(int(rng.integers(1, 30)))
    path.write_bytes(raw)
    return kind


def test_200_corruptions_of_any_file_are_all_refused_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    good = CheckpointStore(tmp_path / "good")
    assert isinstance(save(good, 1), Saved)
    assert isinstance(save(good, 2), Saved)
    seen: set[tuple[str, str]] = set()
    for trial in range(200):
        store = CheckpointStore(shutil.copytree(good.root, tmp_path / "copy"))
        newest = store.root / store.names()[-1]
        victim = rng.choice(sorted(p for p in newest.rglob("*") if p.is_file()))
        seen.add((damage(victim, rng), victim.name))
        with pytest.raises(CheckpointError):
            store.open(newest.name)
        found = store.newest_valid()
        assert found is not None, trial
        assert found.step == 1, (trial, victim)
        assert (store.root / f"damaged-{newest.name}").is_dir()
        assert capsys.readouterr().out.startswith(f"checkpoint {newest.name} is damaged")
        shutil.rmtree(store.root)
    assert len(seen) == 16  # every way, on every file


def killed_at(root: Path, points: list[int]) -> Iterator[int]:
    """Kill a process that saves into ``root`` at each of these points, one after the other."""
    script = Path(__file__).with_name("kill_me.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(root), *map(str, points)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for point in points:
            assert process.stdout.readline() == f"{point}\n"
            yield point
            process.stdin.write("\n")
            process.stdin.flush()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.long)])
def test_kills_at_every_point_of_a_save_leave_the_newest_checkpoint_whole(
    tmp_path: Path, count: int
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    # Up to the first commit there is none; from then on there always is one, and never an older
    # one than before.
    rng = np.random.default_rng(1)
    points = [p % 70 for p in range(count // 2)] + rng.integers(70, 100, count // 2).tolist()
    last, halves = 0, 0
    for point in killed_at(store.root, points):
        halves += bool(store.storage.leftovers()) if store.root.exists() else 0
        found = store.newest_valid()
        step = 0 if found is None else found.step
        assert step >= last, point
        assert store.storage.aside("damaged") == []
        last = step
    assert last > count / 8  # saves went on between the kills
    assert halves > count / 4  # and kills did hit saves


def test_of_two_owners_only_the_one_with_the_newer_epoch_commits(url: str) -> None:
    place = url if url.startswith("s3") else str(Path(url) / "run")
    store = CheckpointStore(f"{url}/run/checkpoints")
    for round_ in range(2):
        stale = Lease(place, expiry_s=BRIEF)
        stale.acquire()
        stale._stop.set()
        with Lease(place, expiry_s=BRIEF) as fresh:
            old, new = (
                save(
                    store,
                    round_ + 1,
                    attempt=store.attempt(lease.epoch),
                    check=lambda epoch=lease.epoch: check_epoch(place, epoch),
                )
                for lease in (stale, fresh)
            )
            assert isinstance(old, Missed)
            assert old.fatal
            assert "took over this run" in old.reason
            assert isinstance(new, Saved)
    assert [store.manifest(n).meta["step"] for n in store.names()] == [1, 2]


def test_an_owner_that_looked_just_in_time_finds_its_save_swept_away(url: str) -> None:
    """It asked whether it still is the owner, then slept while another took over."""
    store = CheckpointStore(f"{url}/checkpoints")

    def taken_over_after_the_look() -> None:
        CheckpointStore(store.url).sweep()

    for step in range(1, 4):
        missed = save(store, step, check=taken_over_after_the_look)
        assert isinstance(missed, Missed), missed
    assert store.names() == []
    assert isinstance(save(store, 9, attempt="b0"), Saved)
    assert len(store.names()) == 1


def test_a_rank_that_never_answers_is_a_miss_for_all(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    ranks = Ranks(rank=0, world=2, exchange=Shared())
    missed = save(store, 1, ranks=ranks, timeout_s=0.2)
    assert isinstance(missed, Missed)
    assert "1" in missed.reason
    assert store.names() == store.storage.leftovers() == []


def test_a_store_commits_verifies_sets_aside_and_prunes_like_a_folder(url: str) -> None:
    from xtdist.checkpoint import Retention

    store = CheckpointStore(f"{url}/checkpoints")
    assert store.newest_valid() is None
    keep = Retention(keep=2, keep_every=5)
    for step in range(4, 9):
        assert isinstance(save(store, step, retention=keep), Saved)
    assert [n[:13] for n in store.names()] == [f"step_{s:08d}" for s in (5, 7, 8)]
    found = store.newest_valid()
    assert found is not None
    assert (found.path / "state/1.bin").read_bytes() == bytes([1, 8]) * 20
    store.take_back(store.names()[-1], "undone")
    store.quarantine(store.names()[-1], "for a test")
    fresh = CheckpointStore(f"{url}/checkpoints")
    found = fresh.newest_valid()
    assert found is not None
    assert found.step == 5
    assert len(fresh.storage.aside("damaged")) == len(fresh.storage.aside("undone")) == 1


def test_what_is_damaged_on_a_store_is_set_aside(bucket: str) -> None:
    from xtdist.data.storage.location import locate

    url = f"{bucket}/checkpoints"
    store = CheckpointStore(url)
    for step in (1, 2, 3):
        assert isinstance(save(store, step), Saved)
    one, two, three = store.names()
    where = locate(f"{url}/{three}/state/1.bin")
    with where.filesystem.open_output_stream(where.path) as out:
        out.write(bytes([1, 9]) * 20)
    manifest = locate(f"{url}/{two}/{MANIFEST}")
    with manifest.filesystem.open_input_file(manifest.path) as file:
        raw = file.read()
    with manifest.filesystem.open_output_stream(manifest.path) as out:
        out.write(raw.replace(b'"note"', b'"nose"'))
    found = CheckpointStore(url).newest_valid()
    assert found is not None
    assert found.path.name == one
    assert sorted(store.storage.aside("damaged")) == [two, three]


def test_an_outage_of_the_store_is_a_miss_and_the_save_after_it_works(
    bucket: str, outage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xtdist.checkpoint import conditional, objects
    from xtdist.data.storage.retry import Backoff

    hasty = Backoff(tries=2, first_wait_s=0.01, total_s=5)
    monkeypatch.setattr(objects, "PATIENCE", hasty)
    monkeypatch.setattr(conditional, "PATIENCE", hasty)
    store = CheckpointStore(f"{bucket}/checkpoints")
    assert isinstance(save(store, 1), Saved)
    for part in ("state/1", MANIFEST):
        outage.hits = lambda method, path, part=part: method == "PUT" and part in path
        missed = save(store, 2)
        assert isinstance(missed, Missed), part
        assert "503" in missed.reason or "SLOW_DOWN" in missed.reason or "failed" in missed.reason
        assert outage.count > 0
        outage.quiet()
        assert [n[:13] for n in store.names()] == ["step_00000001"]
    assert isinstance(save(store, 3), Saved)
    found = store.newest_valid()
    assert found is not None
    assert found.step == 3


def test_an_outage_while_reading_is_not_taken_for_damage(
    bucket: str, outage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xtdist.config import DataError
    from xtdist.data.storage import retry, transfer

    real = retry.retry
    hasty = retry.Backoff(tries=2, first_wait_s=0.01, total_s=5)
    monkeypatch.setattr(transfer, "retry", lambda a, *, what: real(a, what=what, backoff=hasty))
    store = CheckpointStore(f"{bucket}/checkpoints")
    assert isinstance(save(store, 1), Saved)
    outage.hits = lambda method, path: method == "GET" and "state" in path
    with pytest.raises(DataError):
        store.newest_valid()
    outage.quiet()
    found = store.newest_valid()
    assert found is not None
    assert found.step == 1
