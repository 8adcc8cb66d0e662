"""Commit protocol: a checkpoint is whole or not there, and a changed byte is noticed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtdist.checkpoint import CheckpointStore, Ranks, Retention, Saver, read_manifest, verify
from xtdist.checkpoint.layout import MANIFEST, hash_file, list_files, safe_join, write_manifest
from xtdist.checkpoint.saver import Missed, Saved, Shared, Writer
from xtdist.config import CheckpointError


def files_of(step: int, rank: int = 0, world: int = 1) -> dict[str, Writer]:
    """Rank's share of five small files."""

    def writer(i: int) -> Writer:
        return lambda path: (path.write_bytes(bytes([i]) * (100 + i + step)), None)[1]

    return {f"state/shard_{i}.bin": writer(i) for i in range(rank, 5, world)}


def commit(store: CheckpointStore, step: int, *, world: int = 1, **meta: float) -> None:
    exchange = Shared()
    savers = [
        Saver(store, attempt="a0", ranks=Ranks(rank=r, world=world, exchange=exchange))
        for r in range(world)
    ]
    for rank, saver in reversed([*enumerate(savers)]):
        saver.submit(step, files_of(step, rank, world), meta)
    for saver in savers:
        assert saver.wait(30)
        (ended,) = saver.poll()
        assert isinstance(ended, Saved), ended


@pytest.mark.parametrize("world", [1, 2, 7])
def test_ranks_write_their_share_and_rank_0_publishes_all_of_it(tmp_path: Path, world: int) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    commit(store, 10, world=world)
    found = store.newest_valid()
    assert found is not None
    assert found.step == 10
    assert sorted(found.manifest.files) == [f"state/shard_{i}.bin" for i in range(5)]
    assert list_files(found.path) == sorted(found.manifest.files)


def test_a_save_that_was_killed_is_not_seen_and_swept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    commit(store, 10)
    half = store.storage.scratch("step_00000020-a0", 0)
    (half / "shard").write_bytes(b"half")
    newest = store.newest_valid()
    assert newest is not None
    assert newest.step == 10
    store.sweep()
    assert sorted(p.name for p in tmp_path.iterdir()) == store.names()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_changed_byte_makes_the_one_before_it_the_newest(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("store")
    store = CheckpointStore(root)
    commit(store, 1)
    commit(store, 2)
    newest = root / store.names()[-1]
    victim = newest / data.draw(st.sampled_from([*list_files(newest)]))
    raw = bytearray(victim.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    victim.write_bytes(raw)
    with pytest.raises(CheckpointError, match=victim.name):
        store.open(newest.name)
    found = store.newest_valid()
    assert found is not None
    assert found.step == 1
    assert any(p.name.startswith("damaged-") for p in root.iterdir())
    shutil.rmtree(root)


def test_a_missing_file_a_short_file_and_a_missing_manifest_are_named(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    commit(store, 1)
    folder = tmp_path / store.names()[0]
    manifest = read_manifest(folder)
    shard = folder / "state" / "shard_3.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"shard_3.*size"):
        verify(folder, manifest)
    shard.unlink()
    with pytest.raises(CheckpointError, match="shard_3"):
        verify(folder, manifest)
    (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"files": 3}', '{"format_version": 99}', "[" * 100_000]
)
def test_a_broken_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError):
        read_manifest(tmp_path)


def test_a_manifest_of_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    raw = {"format_version": 99, "files": {}, "meta": {}}
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="upgrade"):
        read_manifest(tmp_path)


def test_a_manifest_can_not_name_files_outside_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    with pytest.raises(CheckpointError, match="outside"):
        safe_join(tmp_path / "in", "../secret")
    manifest = write_manifest(tmp_path / "in", {"../secret": hash_file(tmp_path / "secret")}, {})
    with pytest.raises(CheckpointError, match="outside"):
        verify(tmp_path / "in", manifest)


@given(keep=st.integers(-1, 9), count=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_pruning_keeps_the_newest_and_never_the_last_one_goes(
    tmp_path_factory: pytest.TempPathFactory, keep: int, count: int
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("prune"))
    for name in random.Random(count).sample(range(count), count):
        commit(store, name)
    before = store.names()
    store.prune(Retention(keep=keep))
    assert store.names() == before[-max(keep, 1) :]
    shutil.rmtree(store.root)


def test_a_rank_that_can_not_write_makes_the_save_a_miss_on_all_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    commit(store, 1)

    def full(path: Path) -> None:
        path.write_bytes(b"some of it")
        raise OSError(28, "No space left on device")

    exchange = Shared()
    savers = [
        Saver(store, attempt="a1", ranks=Ranks(rank=r, world=3, exchange=exchange))
        for r in range(3)
    ]
    for rank, saver in enumerate(savers):
        files = {**files_of(2, rank, 3), **({"state/last": full} if rank == 2 else {})}
        saver.submit(2, files, {})
    for saver in savers:
        assert saver.wait(30)
        (missed,) = saver.poll()
        assert isinstance(missed, Missed)
        assert "rank 2" in missed.reason
        assert "No space left" in missed.reason
        assert not missed.fatal
    assert [p.name for p in store.root.iterdir()] == ["step_00000001-a0"]
    for rank, saver in enumerate(savers):  # the same step again, now that there is room
        saver.submit(2, files_of(2, rank, 3), {})
    assert [type(e) for s in savers if s.wait(30) for e in s.poll()] == [Saved] * 3
    found = store.newest_valid()
    assert found is not None
    assert found.step == 2
