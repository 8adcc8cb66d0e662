"""The loader: the right rows in the right order, and a thread that always ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from xtdist.config import DataError
from xtdist.data import DataConfig, Loader, Order, TokenDataset

SEQ_LEN = 24


@pytest.fixture
def ds(built: Path) -> TokenDataset:
    return TokenDataset.open(built, "train")


def order_of(ds: TokenDataset, batch: int = 6) -> Order:
    return Order(
        config=DataConfig(path=str(ds.folder)),
        counts={"data": ds.num_windows(SEQ_LEN)},
        seq_len=SEQ_LEN,
        global_batch=batch,
        seed=5,
    )


def loader_threads() -> int:
    return sum(t.name == "xtdist-loader" for t in threading.enumerate())


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_all_ranks_together_give_the_global_batch_window_by_window(
    ds: TokenDataset, world: int
) -> None:
    order = order_of(ds)
    steps = range(180, 430)  # across an epoch edge and several lookup blocks
    assert order.counts["data"] in range(180 * 6, 430 * 6)
    ranks = []
    for rank in range(world):
        with Loader(ds, order, seq_len=SEQ_LEN, steps=steps, rank=rank, world=world) as loader:
            ranks.append(list(loader))
    for i, step in enumerate(steps):
        batches = [batches[i] for batches in ranks]
        assert {b.step for b in batches} == {step}
        samples = order.samples(step)
        expected = np.stack([ds.window(int(w), SEQ_LEN) for w in samples.index])
        tokens = torch.cat([b.tokens for b in batches])
        assert tokens.dtype == torch.int64
        np.testing.assert_array_equal(tokens.numpy(), expected)
        np.testing.assert_array_equal(np.concatenate([b.sample_ids for b in batches]), samples.ids)
        np.testing.assert_array_equal(np.concatenate([b.windows for b in batches]), samples.index)
    assert loader_threads() == 0


def test_an_error_in_the_thread_reaches_the_consumer(dataset: Path) -> None:
    ds = TokenDataset.open(dataset)
    path = dataset / ds.manifest.splits["train"][0].path
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with (
        Loader(ds, order_of(ds, 64), seq_len=SEQ_LEN, steps=range(100)) as loader,
        pytest.raises(DataError, match=path.name),
    ):
        list(loader)
    assert loader_threads() == 0


def test_leaving_early_ends_the_thread(ds: TokenDataset) -> None:
    with Loader(ds, order_of(ds), seq_len=SEQ_LEN, steps=range(10**9)) as loader:
        for batch in loader:
            if batch.step == 3:
                break
    assert loader_threads() == 0
    assert list(loader) == []


def test_reading_ahead_is_bounded(ds: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    plain = TokenDataset.windows

    def counted(self: TokenDataset, indices: np.ndarray, seq_len: int) -> np.ndarray:
        reads.append(len(indices))
        return plain(self, indices, seq_len)

    monkeypatch.setattr(TokenDataset, "windows", counted)
    with Loader(ds, order_of(ds), seq_len=SEQ_LEN, steps=range(1000)) as loader:
        next(iter(loader))
        time.sleep(0.2)
        assert 1 <= len(reads) <= 4  # one taken, two ready, one in the thread's hands


def test_waiting_is_measured(ds: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = TokenDataset.windows

    def slow(self: TokenDataset, indices: np.ndarray, seq_len: int) -> np.ndarray:
        time.sleep(0.4)  # long beside what a busy machine takes away from the consumer
        return plain(self, indices, seq_len)

    monkeypatch.setattr(TokenDataset, "windows", slow)
    with Loader(ds, order_of(ds), seq_len=SEQ_LEN, steps=range(3)) as loader:
        waits = [batch.wait_s for batch in loader]
    assert sum(waits) > 0.2


def test_no_steps_give_no_batches(ds: TokenDataset) -> None:
    with Loader(ds, order_of(ds), seq_len=SEQ_LEN, steps=range(5, 5)) as loader:
        assert list(loader) == []
