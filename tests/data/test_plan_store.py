"""Packing plans on disk: made once, checked when read, made anew when damaged."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from split_in_memory import SplitInMemory

from xtdist.config import ResourceError
from xtdist.data import plan_store
from xtdist.data.packing import Plan, plan_documents
from xtdist.data.plan_store import load_plan
from xtdist.data.storage.config import CacheConfig

SPLIT, SEQ_LEN = SplitInMemory([40, 3, 9, 9, 1, 17, 30, 2, 8] * 3), 16


def load(folder: Path, split: SplitInMemory = SPLIT, seq_len: int = SEQ_LEN) -> Plan:
    return load_plan(split, seq_len, cache=CacheConfig(folder=str(folder)))  # type: ignore[arg-type]


def files(folder: Path) -> list[Path]:
    return sorted((folder / "plans").glob("*.arrow"))


def assert_same(one: Plan, two: Plan) -> None:
    for a, b in ((one.starts, two.starts), (one.lengths, two.lengths), (one.rows, two.rows)):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every plan that is computed."""
    calls = []

    def counted(split: SplitInMemory, seq_len: int) -> Plan:
        calls.append(seq_len)
        return plan_documents(split, seq_len)

    monkeypatch.setattr(plan_store, "plan_documents", counted)
    return calls


def test_a_plan_is_made_once_and_read_back_unchanged(tmp_path: Path, made: list[int]) -> None:
    plans = [load(tmp_path) for _ in range(3)]
    assert made == [SEQ_LEN]
    for plan in plans:
        assert_same(plan, plan_documents(SPLIT, SEQ_LEN))
    assert len(files(tmp_path)) == 1


def test_other_lengths_splits_and_datasets_have_plans_of_their_own(
    tmp_path: Path, made: list[int]
) -> None:
    others = [SplitInMemory([40, 3, 9]) for _ in range(2)]
    others[0].dataset_id, others[1].split = "1" * 64, "valid"
    load(tmp_path)
    load(tmp_path, seq_len=SEQ_LEN + 1)
    for other in others:
        assert_same(load(tmp_path, other), plan_documents(other, SEQ_LEN))
    assert len(made) == len(files(tmp_path)) == 4


def test_a_damaged_plan_is_made_anew(tmp_path: Path, made: list[int]) -> None:
    good = plan_documents(SPLIT, SEQ_LEN)
    load(tmp_path)
    (path,) = files(tmp_path)
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", raw[:100], raw[: len(raw) // 2], raw[:-1], b"\0" * len(raw)]
    for at in rng.integers(0, len(raw), 150).tolist():
        flipped = bytearray(raw)
        flipped[at] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    for content in damaged:
        path.unlink()
        path.write_bytes(content)
        before = len(made)
        assert_same(load(tmp_path), good)
        assert len(made) == before or path.read_bytes() == raw
    assert len(made) > 50


def test_a_plan_under_the_name_of_another_is_not_taken(tmp_path: Path, made: list[int]) -> None:
    load(tmp_path)
    (path,) = files(tmp_path)
    other = SplitInMemory([5, 6, 7])
    other.dataset_id = "2" * 64
    load(tmp_path, other)
    (another,) = set(files(tmp_path)) - {path}
    another.write_bytes(path.read_bytes())
    assert_same(load(tmp_path, other), plan_documents(other, SEQ_LEN))
    assert len(made) == 3


def test_many_at_once_make_one_plan(tmp_path: Path, made: list[int]) -> None:
    plans: list[Plan] = []
    threads = [
        threading.Thread(target=lambda: plans.append(load(tmp_path)), daemon=True) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(plans) == 8
    for plan in plans:
        assert_same(plan, plans[0])


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    load(tmp_path)
    (path,) = files(tmp_path)
    stale = path.with_name(f".{path.name}.part")
    path.rename(stale)
    load(tmp_path)
    assert not stale.exists()
    assert path.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"data\.cache\.folder"):
        load(tmp_path / "file")


def test_the_file_is_plain_arrow(tmp_path: Path) -> None:
    plan = load(tmp_path)
    with pa.memory_map(str(files(tmp_path)[0])) as source:
        rows = pa.ipc.open_file(source).read_all().column("pieces").to_pylist()
    assert len(rows) == plan.num_rows
    flat = [(p["start"], p["length"]) for row in rows for p in row]
    assert flat == list(zip(plan.starts.tolist(), plan.lengths.tolist(), strict=True))
