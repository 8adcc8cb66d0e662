"""The loader: the right rows in the right order, and a thread that always ends."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xtdist.config import ConfigError, DataError
from xtdist.data import (
    ByteTokenizerConfig,
    DataConfig,
    FilesSource,
    Loader,
    StepBatch,
    View,
    open_view,
    prepare,
)
from xtdist.data.config import BlockShuffle, CorpusConfig, Documents
from xtdist.data.order import Samples, rank_slice
from xtdist.data.storage.config import CacheConfig
from xtdist.data.windows import Joined

SEQ_LEN = 24


def view_of(folder: Path, batch: int = 6, **changes: Any) -> View:
    config = DataConfig(**{"path": str(folder), **changes})
    return open_view(config, "train", seq_len=SEQ_LEN, seed=5, global_batch=batch)


def mixed(one: Path, two: Path, **changes: Any) -> View:
    corpora = {
        "a": CorpusConfig(path=str(one), weight=1),
        "b": CorpusConfig(path=str(two), weight=2),
    }
    return view_of(one, **{"path": None, "corpora": corpora, **changes})


def loader_threads() -> int:
    return sum(t.name == "xtdist-loader" for t in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Any:
    yield
    assert loader_threads() == 0


def read(view: View, **where: Any) -> list[StepBatch]:
    with Loader(view, **where) as loader:
        return list(loader)


def row_by_row(view: View, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a step, read one at a time."""
    tokens = np.empty((len(samples.ids), SEQ_LEN + 1), np.uint16)
    documents = np.empty(tokens.shape, np.int32)
    for i, (corpus, index) in enumerate(zip(samples.corpus, samples.index, strict=True)):
        view.windows[corpus].fill(index[None], tokens[i : i + 1], documents[i : i + 1])
    return tokens, documents


@pytest.mark.parametrize("documents", ["joined", "masked", "packed"])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_all_ranks_together_give_the_global_batch_row_by_row(
    built: Path, tmp_path: Path, world: int, documents: Documents
) -> None:
    view = view_of(built, documents=documents, cache=CacheConfig(folder=str(tmp_path)))
    steps = range(180, 330)  # across an epoch edge, several reads and lookups
    assert view.windows[0].count in range(180 * 6, 330 * 6)
    ranks = [read(view, steps=steps, rank=rank, world=world) for rank in range(world)]
    for i, step in enumerate(steps):
        batches = [batches[i] for batches in ranks]
        assert {b.step for b in batches} == {step}
        samples = view.order.samples(step)
        tokens, numbers = row_by_row(view, samples)
        got = torch.cat([b.tokens for b in batches])
        assert got.dtype == torch.int64
        np.testing.assert_array_equal(got.numpy(), tokens)
        np.testing.assert_array_equal(np.concatenate([b.sample_ids for b in batches]), samples.ids)
        np.testing.assert_array_equal(np.concatenate([b.windows for b in batches]), samples.index)
        parts = [b.documents for b in batches if b.documents is not None]
        assert len(parts) == (0 if documents == "joined" else world)
        if parts:
            np.testing.assert_array_equal(torch.cat(parts).numpy(), numbers)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory, corpus: Path, settings: Any) -> list[Path]:
    """Two datasets of one tokenizer and different texts."""
    root = tmp_path_factory.mktemp("corpora")
    for part in ("part0", "part1"):
        source = FilesSource(path=str(corpus / part))
        prepare(settings(root / part, tokenizer=ByteTokenizerConfig(), source=source))
    return [root / "part0", root / "part1"]


@pytest.mark.parametrize("documents", ["joined", "masked"])
def test_rows_of_a_mixture_come_from_their_corpora(
    corpora: list[Path], documents: Documents
) -> None:
    view = mixed(*corpora, documents=documents, batch=7)
    steps = range(40, 80)
    for rank in range(2):
        for batch in read(view, steps=steps, rank=rank, world=2):
            part = rank_slice(7, rank, 2)
            samples = view.order.samples(batch.step, part)
            assert set(samples.corpus.tolist()) == {0, 1}
            tokens, numbers = row_by_row(view, samples)
            np.testing.assert_array_equal(batch.tokens.numpy(), tokens)
            np.testing.assert_array_equal(batch.corpus, samples.corpus)
            if documents == "masked":
                assert batch.documents is not None
                np.testing.assert_array_equal(batch.documents.numpy(), numbers)


@pytest.mark.parametrize("first", [0, 1, 77, 10**12])
def test_any_step_can_be_the_first(built: Path, first: int) -> None:
    view = view_of(built)
    for batch in read(view, steps=range(first, first + 3)):
        tokens, _ = row_by_row(view, view.order.samples(batch.step))
        np.testing.assert_array_equal(batch.tokens.numpy(), tokens)


@pytest.mark.parametrize("documents", ["joined", "masked"])
def test_a_batch_that_is_kept_stays_as_it_was(built: Path, documents: Documents) -> None:
    view = view_of(built, documents=documents, batch=40)
    kept, copies = [], []
    with Loader(view, steps=range(60)) as loader:
        for batch in loader:
            kept.append(batch)
            numbers = batch.documents
            copies.append((batch.tokens.clone(), None if numbers is None else numbers.clone()))
            time.sleep(0.001)
    for batch, (tokens, numbers) in zip(kept, copies, strict=True):
        assert torch.equal(batch.tokens, tokens)
        assert batch.documents is None or torch.equal(batch.documents, numbers)


def test_more_ranks_than_samples_leave_some_without_rows(built: Path) -> None:
    view = view_of(built, batch=2)
    sizes = [{len(b.tokens) for b in read(view, steps=range(5), rank=r, world=5)} for r in range(5)]
    assert sorted(max(s) for s in sizes) == [0, 0, 0, 1, 1]
    (empty,) = {tuple(b.tokens.shape) for b in read(view, steps=range(5), rank=0, world=5)}
    assert empty == (0, SEQ_LEN + 1)


def test_an_error_in_the_thread_reaches_the_consumer(dataset: Path) -> None:
    view = view_of(dataset, batch=64)
    path = dataset / view.datasets["data"].manifest.splits["train"][0].path
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with Loader(view, steps=range(100)) as loader, pytest.raises(DataError, match=path.name):
        list(loader)


def test_leaving_early_ends_the_thread(built: Path) -> None:
    with Loader(view_of(built), steps=range(10**9)) as loader:
        for batch in loader:
            if batch.step == 3:
                break
    assert loader_threads() == 0
    assert list(loader) == []


def test_closing_twice_and_before_the_first_batch_ends_the_thread(built: Path) -> None:
    loader = Loader(view_of(built), steps=range(10**9))
    loader.close()
    loader.close()
    assert loader_threads() == 0


def test_reading_ahead_is_bounded(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    plain = Joined.fill

    def counted(self: Joined, indices: np.ndarray, *out: Any) -> None:
        reads.append(len(indices))
        plain(self, indices, *out)

    monkeypatch.setattr(Joined, "fill", counted)
    with Loader(view_of(built, batch=100), steps=range(1000)) as loader:
        next(iter(loader))
        time.sleep(0.2)
        assert set(reads) == {500}  # small batches are read together
        assert len(reads) == 2  # one taken, five ready, the rest in the thread's hands


def test_waiting_is_measured(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Joined.fill

    def slow(self: Joined, indices: np.ndarray, *out: Any) -> None:
        time.sleep(0.4)  # long beside what a busy machine takes away from the consumer
        plain(self, indices, *out)

    monkeypatch.setattr(Joined, "fill", slow)
    waits = [batch.wait_s for batch in read(view_of(built, batch=300), steps=range(3))]
    assert sum(waits) > 0.8


def test_no_steps_give_no_batches(built: Path) -> None:
    assert read(view_of(built), steps=range(5, 5)) == []


def test_steps_must_be_consecutive(built: Path) -> None:
    with pytest.raises(ValueError, match="consecutive"):
        Loader(view_of(built), steps=range(0, 10, 2))


def test_a_rank_or_device_that_is_not_there_is_refused(built: Path) -> None:
    view = view_of(built)
    with pytest.raises(ConfigError, match="rank 2"):
        Loader(view, steps=range(3), rank=2, world=2)
    with pytest.raises(ConfigError, match="meta"):
        Loader(view, steps=range(3), device="meta")
    with pytest.raises(ConfigError, match="device: got 'gpu'; give cpu"):
        Loader(view, steps=range(3), device="gpu")
    with pytest.raises(ValueError, match="from 0 on"):
        Loader(view, steps=range(-1, 3))


def test_blocks_that_come_next_are_announced(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(Joined, "will_need", lambda self, first, stop: told.append((first, stop)))
    view = view_of(built, shuffle=BlockShuffle(block_tokens=6000, group_blocks=3))
    seen: set[int] = set()
    with Loader(view, steps=range(view.windows[0].count // 6)) as loader:
        for batch in loader:
            announced = {w for first, stop in told for w in range(first, stop)}
            assert set(batch.windows.tolist()) <= announced
            seen |= set(batch.windows.tolist())
    assert len(seen) > 1000


@pytest.mark.parametrize("seq_len", [100, 2**19, 2**21])
def test_long_rows_are_read_few_at_once(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, seq_len: int
) -> None:
    """Memory for what is read at once doesn't grow with the length of rows."""
    sizes = []

    class Endless:
        count = 1000

        def fill(self, indices: np.ndarray, tokens: np.ndarray, documents: object) -> None:
            sizes.append(tokens.size)
            tokens[:] = 3

    view = view_of(dataset, batch=2)
    order = dataclasses.replace(view.order, seq_len=seq_len, counts={"data": 1000})
    with Loader(
        dataclasses.replace(view, order=order, windows=(Endless(),)), steps=range(1000)
    ) as loader:
        shape = next(iter(loader)).tokens.shape
    assert shape == (2, seq_len + 1)
    assert max(sizes) <= max(2**19, 2 * (seq_len + 1))
