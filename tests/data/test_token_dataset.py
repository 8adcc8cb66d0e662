"""Reading a split: every token and document where it belongs, copied once or not at all."""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.handmade import doc_id, random_documents, write_dataset
from xtdist.config import DataError
from xtdist.data import TokenDataset, byte_tokenizer
from xtdist.data import mapped as mapped_module
from xtdist.data.dataset import read_tokenizer
from xtdist.data.mapped import most_mapped
from xtdist.data.opening import read_manifest
from xtdist.data.storage.config import CacheConfig
from xtdist.data.storage.folder import LocalFolder


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    return random_documents(np.random.default_rng(3).integers(1, 400, 120).tolist())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, documents: list[np.ndarray]) -> Path:
    """Some 24,000 tokens in about 40 shards."""
    folder = tmp_path_factory.mktemp("made") / "d"
    return write_dataset(folder, shard_tokens=500, train=documents, valid=documents[:2])


@dataclass
class Drawn:
    ds: TokenDataset
    documents: list[np.ndarray]
    flat: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_everything_read_equals_one_long_numpy_array(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=30), label="lengths")
    shard_tokens = data.draw(st.sampled_from([1, 7, 50, 10_000]), label="shard_tokens")
    dtype = data.draw(st.sampled_from(["uint16", "uint32"]), label="dtype")
    verify = data.draw(st.sampled_from(["touch", "size", "full"]), label="verify")
    documents = random_documents(lengths, seed=data.draw(st.integers(0, 99)))
    with tempfile.TemporaryDirectory() as name:
        folder = write_dataset(Path(name), shard_tokens=shard_tokens, dtype=dtype, train=documents)
        stops = np.cumsum(lengths)
        drawn = Drawn(
            ds=TokenDataset.open(folder, "train", verify=verify),
            documents=documents,
            flat=np.concatenate(documents).astype(dtype),
            starts=stops - lengths,
            stops=stops,
        )
        check_tokens(drawn, data)
        check_parts(drawn, data)
        check_documents(drawn, data)


def check_tokens(drawn: Drawn, data: st.DataObject) -> None:
    ds, flat = drawn.ds, drawn.flat
    assert (ds.total_tokens, ds.num_documents) == (len(flat), len(drawn.documents))
    assert ds.text_bytes == sum(max(1, len(d) - 1) for d in drawn.documents)
    start = data.draw(st.integers(0, len(flat)))
    stop = data.draw(st.integers(start, len(flat)))
    np.testing.assert_array_equal(ds.read(start, stop), flat[start:stop])
    assert ds.read(start, stop).dtype == flat.dtype
    ds.will_need(start, stop)
    width = data.draw(st.integers(1, len(flat)))
    places = st.lists(st.integers(0, len(flat) - width), max_size=6)
    starts = np.array(data.draw(places), np.int64)
    out = np.full((len(starts), width), 9, flat.dtype)
    ds.gather(starts, out)
    expected = [flat[s : s + width] for s in starts]
    np.testing.assert_array_equal(out, np.array(expected, flat.dtype).reshape(-1, width))


def check_parts(drawn: Drawn, data: st.DataObject) -> None:
    flat = drawn.flat
    ends = st.tuples(st.integers(0, len(flat)), st.integers(0, len(flat)))
    runs = [(min(r), max(r)) for r in data.draw(st.lists(ends, max_size=5))]
    starts, stops = (np.array([r[i] for r in runs], np.int64) for i in range(2))
    lengths, gap = stops - starts, 3
    places = np.cumsum(lengths + gap) - lengths
    out = np.full(int((lengths + gap).sum()) + gap, 9, flat.dtype)
    expected = out.copy()
    for (start, stop), place in zip(runs, places, strict=True):
        expected[place : place + stop - start] = flat[start:stop]
    drawn.ds.gather_parts(starts, lengths, out, places=places)
    np.testing.assert_array_equal(out, expected)  # also what lies between the runs


def check_documents(drawn: Drawn, data: st.DataObject) -> None:
    ds, count = drawn.ds, len(drawn.documents)
    for one, other in zip(ds.documents(), drawn.documents, strict=True):
        np.testing.assert_array_equal(one, other)
    owner = [i for i, document in enumerate(drawn.documents) for _ in document]
    some = np.array(data.draw(st.lists(st.integers(0, len(owner) - 1), max_size=20)), np.int64)
    assert ds.document_at(some).tolist() == [owner[i] for i in some]
    assert ds.document_at(np.arange(len(owner))).tolist() == owner
    numbers = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=20)), np.int64)
    starts, stops = ds.document_bounds(numbers)
    np.testing.assert_array_equal(starts, drawn.starts[numbers])
    np.testing.assert_array_equal(stops, drawn.stops[numbers])
    assert ds.doc_ids(numbers) == [doc_id("train", int(i)) for i in numbers]


def test_what_is_outside_of_the_split_is_an_index_error(made: Path) -> None:
    ds = TokenDataset.open(made)
    n, row = ds.total_tokens, np.empty((2, 10), np.uint16)
    for starts in ([0, n - 9], [-1, 0]):
        with pytest.raises(IndexError, match=str(n)):
            ds.gather(np.array(starts), row)
    for start, stop in ((0, n + 1), (-1, 3), (5, 4)):
        for read in (ds.read, ds.will_need):
            with pytest.raises(IndexError, match=str(n)):
                read(start, stop)
    flat, five = np.empty(20, np.uint16), np.array([5])
    for starts, lengths, places in ((n, 5, 0), (0, 5, 16), (0, 5, -1), (9, -1, 0)):
        with pytest.raises(IndexError):
            ds.gather_parts(five * 0 + starts, five * 0 + lengths, flat, places=five * 0 + places)
    for bad in (-1, n):
        with pytest.raises(IndexError):
            ds.document_at(np.array([0, bad]))
    for bad in (-1, ds.num_documents):
        with pytest.raises(IndexError):
            ds.document_bounds(np.array([0, bad]))
        with pytest.raises(IndexError):
            ds.doc_ids(np.array([bad]))


def test_rows_of_another_type_or_with_gaps_are_refused(made: Path) -> None:
    ds = TokenDataset.open(made)
    for out in (np.empty((2, 5), np.int64), np.empty((2, 9), np.uint16)[:, :5]):
        with pytest.raises(ValueError, match="uint16 and contiguous"):
            ds.gather(np.array([0, 3]), out)


def anonymous_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("Anonymous"))


def test_reading_needs_no_memory_and_keeps_no_file_open(tmp_path: Path) -> None:
    documents = random_documents([100_000] * 80)
    folder = write_dataset(tmp_path / "d", shard_tokens=2_000_000, train=documents)
    arrow, files, memory = pa.total_allocated_bytes(), os.listdir("/proc/self/fd"), 0
    ds = TokenDataset.open(folder)
    out = np.zeros((16, 1025), np.uint16)
    memory = anonymous_bytes()
    rng = np.random.default_rng(0)
    for _ in range(500):  # as many tokens as there are
        ds.gather(rng.integers(0, ds.total_tokens - 1025, 16), out)
    views = [ds.read(i * 2_000_000, (i + 1) * 2_000_000) for i in range(4)]
    ds.document_bounds(ds.document_at(np.arange(0, ds.total_tokens, 1000)))
    assert anonymous_bytes() - memory < 4 * 2**20  # of 16 MB
    assert pa.total_allocated_bytes() == arrow
    assert os.listdir("/proc/self/fd") == files
    assert not any(view.flags.owndata or view.flags.writeable for view in views)


def test_threads_read_the_same_and_open_each_shard_once(
    made: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, plain = [], mapped_module.open_shard

    def counted(path: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(path.name)
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(mapped_module, "open_shard", counted)
    ds, flat = TokenDataset.open(made), np.concatenate(documents)
    check_in_threads(ds, flat)
    assert sorted(opened) == [s.path for s in ds.manifest.splits["train"]]


def check_in_threads(ds: TokenDataset, flat: np.ndarray) -> None:
    start = threading.Barrier(6)

    def work(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        start.wait()
        for _ in range(15):
            starts, out = rng.integers(0, len(flat) - 33, 8), np.empty((8, 33), np.uint16)
            ds.gather(starts, out)
            numbers = ds.document_at(starts)
            begins, ends = ds.document_bounds(numbers)
            if not ((begins <= starts) & (starts < ends)).all():
                return False
            if any((row != flat[s : s + 33]).any() for row, s in zip(out, starts, strict=True)):
                return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


class LikeRemote(LocalFolder):
    """Checks shards itself, and counts what is held."""

    verified = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.held: list[str] = []
        self.most = self.taken = 0

    def shard(self, info: Any) -> Path:
        self.held.append(info.path)
        self.taken += 1
        self.most = max(self.most, len(self.held))
        return super().shard(info)

    def release(self, info: Any) -> None:
        self.held.remove(info.path)


@pytest.fixture
def open_like_remote(made: Path) -> Callable[[float], tuple[TokenDataset, LikeRemote]]:
    def open_with(limit_gb: float) -> tuple[TokenDataset, LikeRemote]:
        folder = LikeRemote(made)
        manifest = read_manifest(folder)
        ds = TokenDataset(
            folder,
            "train",
            manifest=manifest,
            tokenizer=read_tokenizer(folder, manifest),
            verify="touch",
            cache=CacheConfig(limit_gb=limit_gb),
        )
        return ds, folder

    return open_with


def test_few_shards_of_a_remote_dataset_stay_mapped(
    open_like_remote: Callable[..., Any], documents: list[np.ndarray]
) -> None:
    flat = np.concatenate(documents)
    largest = 4000  # bytes of a shard, about
    for shards in (1, 3):
        ds, folder = open_like_remote(16 * largest * shards / 1e9)
        for one, other in zip(ds.documents(), documents, strict=True):
            np.testing.assert_array_equal(one, other)
        check_in_threads(ds, flat)
        np.testing.assert_array_equal(ds.read(0, len(flat)), flat)
        assert 1 <= len(folder.held) <= shards + 1
        assert folder.most <= shards + 1 + 6  # and one on its way in each thread
        assert len(set(folder.held)) == len(folder.held)
    ds, folder = open_like_remote(1.0)
    np.testing.assert_array_equal(ds.read(0, len(flat)), flat)
    assert folder.taken == len(folder.held) == len(ds.manifest.splits["train"])


def test_local_shards_all_stay_mapped_as_far_as_the_system_allows(made: Path) -> None:
    infos = read_manifest(made).splits["train"]
    assert most_mapped(LocalFolder(made), infos, CacheConfig(limit_gb=1e-9)) > 10_000
    assert most_mapped(LikeRemote(made), infos, CacheConfig(limit_gb=1e-9)) == 1


def test_remote_shards_leave_most_of_the_files_of_the_process_to_others(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infos = read_manifest(made).splits["train"]
    monkeypatch.setattr("resource.getrlimit", lambda kind: (128, 4096))
    assert most_mapped(LikeRemote(made), infos, CacheConfig()) == 16


def test_a_dataset_pickles_as_its_folder(made: Path) -> None:
    cache = CacheConfig(limit_gb=3.0)
    ds = TokenDataset.open(made, "valid", "size", cache)
    ds.read(0, 5)
    raw = pickle.dumps(ds)
    assert len(raw) < 1000
    again = pickle.loads(raw)
    assert again.dataset_id == ds.dataset_id
    assert (again.split, again.verify, again.cache) == ("valid", "size", cache)
    np.testing.assert_array_equal(again.read(0, 32), ds.read(0, 32))


def test_an_unknown_split_is_refused_with_the_ones_there_are(made: Path) -> None:
    with pytest.raises(DataError, match=r"'test'.*train, valid"):
        TokenDataset.open(made, "test")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A dataset of three shards for the test to damage."""
    return write_dataset(tmp_path / "d", shard_tokens=90, train=random_documents([90, 60, 40, 20]))


def test_a_changed_shard_is_refused_when_it_is_first_read(damaged: Path) -> None:
    path = damaged / "train-00001.arrow"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    ds = TokenDataset.open(damaged)
    assert len(ds.read(0, 90)) == 90  # the first shard is whole
    uses: list[Callable[[], object]] = [
        lambda: ds.read(80, 100),
        lambda: ds.gather(np.array([0, 85]), np.empty((2, 10), np.uint16)),
        lambda: ds.will_need(0, 100),
        lambda: ds.document_at(np.array([95])),
        lambda: ds.document_bounds(np.array([1])),
        lambda: list(ds.documents()),
        lambda: TokenDataset.open(damaged, verify="full"),
    ]
    for use in uses:  # again and again: a shard that failed once isn't trusted afterwards
        with pytest.raises(DataError, match=rf"{path.name}: content changed"):
            use()


def test_a_cut_or_missing_shard_is_refused_on_opening(damaged: Path) -> None:
    path = damaged / "train-00002.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path.name}: shard has \d+ bytes, not \d+"):
        TokenDataset.open(damaged, verify="size")
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name}: shard is missing"):
        TokenDataset.open(damaged, verify="size")


def test_without_hashing_an_id_outside_the_vocabulary_is_still_refused(damaged: Path) -> None:
    path = damaged / "train-00001.arrow"
    first = TokenDataset.open(damaged).read(90, 98).tobytes()
    raw = bytearray(path.read_bytes())
    raw[raw.index(first) + 4 : raw.index(first) + 6] = b"\xff\xff"  # token 92
    path.write_bytes(raw)
    ds, rows = TokenDataset.open(damaged, verify="size"), np.empty((2, 4), np.uint16)
    ds.read(0, 92)
    ds.gather(np.array([0, 93]), rows)
    uses: list[Callable[[], object]] = [
        lambda: ds.read(0, 93),
        lambda: ds.gather(np.array([3, 91]), rows),
        lambda: ds.gather(np.array([3, 89]), rows),  # goes on from the shard before
        lambda: ds.gather_parts(*np.array([[0, 91], [1, 3]]), rows[0], places=np.array([0, 1])),
        lambda: list(ds.documents()),
    ]
    for use in uses:
        with pytest.raises(DataError, match=f"{path.name}: holds id 65535, .* ends at 258"):
            use()


def test_shards_that_changed_places_are_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", shard_tokens=10, train=random_documents([10, 10]))
    first, second = folder / "train-00000.arrow", folder / "train-00001.arrow"
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    with pytest.raises(DataError, match=first.name):
        TokenDataset.open(folder).read(0, 5)


def test_a_swapped_or_reformatted_tokenizer_is_refused(damaged: Path) -> None:
    path = damaged / "tokenizer.json"
    for text in (byte_tokenizer().text + " ", "{}", ""):
        path.write_text(text)
        with pytest.raises(DataError, match=r"tokenizer\.json: not the tokenizer that this data"):
            TokenDataset.open(damaged)
    path.unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: can't be read"):
        TokenDataset.open(damaged)
