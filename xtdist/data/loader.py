"""Batches for one rank, read ahead by one background thread in the training process."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from xtdist.data.dataset import TokenDataset
from xtdist.data.order import Order, rank_slice

PREFETCH_STEPS = 2
LOOKUP_SAMPLES = 1024


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One rank's rows of one step's global batch.

    Attributes:
        tokens: seq_len + 1 token ids per row.
        sample_ids: number of each row in the whole run (see ``Order.sample_ids``).
        windows: window of the dataset that each row holds.
        wait_s: how long the consumer stood still for this batch.
    """

    step: int
    tokens: Int[Tensor, "b n+1"]
    sample_ids: NDArray[np.int64]
    windows: NDArray[np.int64]
    wait_s: float


class Loader:
    """Iterates over ``steps``; a rank may have zero rows when there are more ranks than samples.

    An error in the reading thread is raised to the consumer. Use it as a context manager, or call
    ``close``, so that the thread ends.

    Example:
        >>> with Loader(ds, order, seq_len=256, rank=0, world=2, steps=range(100)) as loader:
        ...     for batch in loader: ...                                      # doctest: +SKIP
    """

    def __init__(
        self,
        dataset: TokenDataset,
        order: Order,
        *,
        seq_len: int,
        steps: range,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.dataset, self.order, self.seq_len, self.steps = dataset, order, seq_len, steps
        self._rows = rank_slice(order.global_batch, rank, world)
        self._ready: queue.Queue[StepBatch | BaseException | None] = queue.Queue(PREFETCH_STEPS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="xtdist-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[StepBatch]:
        while not self._stop.is_set():
            start = time.perf_counter()
            item = self._ready.get()
            if isinstance(item, BaseException):
                self.close()
                raise item
            if item is None:
                self.close()
                return
            wait_s = time.perf_counter() - start
            yield dataclasses.replace(item, wait_s=wait_s)

    def close(self) -> None:
        """End the thread; the loader gives nothing more."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.01)
            except queue.Empty:
                continue

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _work(self) -> None:
        try:
            for batch in self._batches():
                self._ready.put(batch)
                if self._stop.is_set():
                    return
            self._ready.put(None)
        except BaseException as e:
            self._ready.put(e)

    def _batches(self) -> Iterator[StepBatch]:
        """The batches in order. Windows are looked up for many steps at once: the permutation costs
        12 us per sample in batches of 32, 1 us in batches of 1024."""
        together = max(1, LOOKUP_SAMPLES // self.order.global_batch)
        for first in range(0, len(self.steps), together):
            steps = self.steps[first : first + together]
            found = self.order.samples_between(steps.start, steps.stop, self._rows)
            for step, sample_ids, here in zip(steps, found.ids, found.index, strict=True):
                yield StepBatch(
                    step=step,
                    tokens=torch.from_numpy(self.dataset.windows(here, self.seq_len)),
                    sample_ids=sample_ids,
                    windows=here,
                    wait_s=0.0,
                )
