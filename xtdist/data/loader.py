"""Batches for one rank, read ahead by one background thread in the training process."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from xtdist.data.order import Samples, rank_slice
from xtdist.data.read_ahead import ReadAhead
from xtdist.data.ring import Sent, Shape, make_buffers
from xtdist.data.view import View
from xtdist.data.windows import Windows

# Few samples at a time cost more each, so the order is asked for many and small batches are read
# several at once. What is read at once is ready while the next is read.
LOOKUP_SAMPLES = 4096
READ_ROWS = 512
READ_TOKENS = 2**19
LEAST_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One rank's rows of one step's global batch.

    Attributes:
        tokens: seq_len + 1 token ids per row.
        documents: numbers of the documents within each row (see ``Windows.fill``); None: rows are
            read without regard to documents.
        sample_ids: number of each row in the whole run (see ``Samples``).
        corpus: number of the corpus that each row comes from.
        windows: window of the corpus that each row holds.
        wait_s: how long the consumer stood still for this batch.
    """

    step: int
    tokens: Int[Tensor, "b n+1"]
    documents: Int[Tensor, "b n+1"] | None = None
    sample_ids: NDArray[np.int64]
    corpus: NDArray[np.int64]
    windows: NDArray[np.int64]
    wait_s: float


class Loader:
    """Iterates over ``steps`` of a view; a rank may have zero rows when there are more ranks than
    samples. Batches belong to the consumer: none is changed after it was given.

    An error in the reading thread is raised to the consumer. Use it as a context manager, or call
    ``close``, so that the thread ends.

    Args:
        view: what the run reads.
        steps: consecutive training steps.
        device: where ``tokens`` and ``documents`` are put: cpu or cuda.

    Raises:
        ConfigError: no such rank or device.

    Example:
        >>> with Loader(view, rank=0, world=2, steps=range(100)) as loader:
        ...     for batch in loader: ...                                      # doctest: +SKIP
    """

    def __init__(
        self,
        view: View,
        *,
        steps: range,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if steps.step != 1 or steps.start < 0:
            raise ValueError(f"steps: got {steps}; they must be consecutive, from 0 on")
        self.view, self.steps = view, steps
        self._slice = rank_slice(view.global_batch, rank, world)
        rows = self._slice.stop - self._slice.start
        most = min(READ_ROWS, READ_TOKENS // (view.seq_len + 1))
        self._at_once = max(1, min(most // max(1, rows), len(steps)))
        self._buffers = make_buffers(
            Shape(
                rows=self._at_once * rows,
                width=view.seq_len + 1,
                dtype=np.dtype(next(iter(view.datasets.values())).manifest.dtype),
                documents=view.config.documents != "joined",
            ),
            device,
        )
        self._ready: queue.Queue[tuple[StepBatch, Sent] | BaseException | None]
        self._ready = queue.Queue(max(LEAST_AHEAD, self._at_once))
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
            batch, sent = item
            self._buffers.receive(sent)
            yield dataclasses.replace(batch, wait_s=time.perf_counter() - start)

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
            for item in self._batches():
                self._ready.put(item)
                if self._stop.is_set():
                    return
            self._ready.put(None)
        except BaseException as e:
            self._ready.put(e)

    def _batches(self) -> Iterator[tuple[StepBatch, Sent]]:
        """The batches in order: looked up for many steps at once, read for some."""
        order, ahead = self.view.order, ReadAhead(self.view.order, self.view.windows)
        rows = self._slice.stop - self._slice.start
        together = -(-LOOKUP_SAMPLES // max(1, rows * self._at_once)) * self._at_once
        for first in range(0, len(self.steps), together):
            steps = self.steps[first : first + together]
            found = order.samples_between(steps.start, steps.stop, self._slice)
            for low in range(0, len(steps), self._at_once):
                part = slice(low, low + self._at_once)
                ahead.announce(steps[low], steps=len(steps[part]))
                here = Samples(found.ids[part], found.corpus[part], found.index[part])
                yield from self._read(steps[part], here)

    def _read(self, steps: range, samples: Samples) -> Iterator[tuple[StepBatch, Sent]]:
        tokens, documents = self._buffers.take()
        count, rows = samples.ids.size, samples.ids.shape[1]
        fill_rows(
            self.view.windows,
            samples,
            tokens[:count],
            documents=None if documents is None else documents[:count],
        )
        for i, step in enumerate(steps):
            sent = self._buffers.send(slice(i * rows, (i + 1) * rows))
            batch = StepBatch(
                step=step,
                tokens=sent.tokens,
                documents=sent.documents,
                sample_ids=samples.ids[i],
                corpus=samples.corpus[i],
                windows=samples.index[i],
                wait_s=0.0,
            )
            yield batch, sent


def fill_rows(
    windows: Sequence[Windows],
    samples: Samples,
    tokens: NDArray[Any],
    *,
    documents: NDArray[np.int32] | None,
) -> None:
    """Read the rows of ``samples`` of several corpora (see ``Windows.fill``).

    Args:
        windows: of the corpora by number.
        tokens: as many rows as there are samples, as are ``documents``; changed in place.
    """
    corpus, index = samples.corpus.reshape(-1), samples.index.reshape(-1)
    if len(windows) == 1:
        windows[0].fill(index, tokens, documents)
        return
    for number in np.unique(corpus).tolist():
        rows = np.flatnonzero(corpus == number)
        some = np.empty((len(rows), tokens.shape[1]), tokens.dtype)
        if documents is None:
            windows[number].fill(index[rows], some, None)
        else:
            numbers = np.empty(some.shape, np.int32)
            windows[number].fill(index[rows], some, numbers)
            documents[rows] = numbers
        tokens[rows] = some
