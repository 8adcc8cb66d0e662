"""Batches for one rank, read ahead by one background thread in the training process."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

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
        step: of training.
        data_step: the step of data that it reads.
        step_rows: rows of the whole step, of all ranks together.
        tokens: seq_len + 1 token ids per row.
        documents: numbers of the documents within each row (see ``Windows.fill``); None: rows are
            read without regard to documents.
        sample_ids: number of each row in the whole run (see ``Samples``).
        corpus: number of the corpus that each row comes from.
        windows: window of the corpus that each row holds.
        wait_s: how long the consumer stood still for this batch.
    """

    step: int
    data_step: int
    step_rows: int
    tokens: Int[Tensor, "b n+1"]
    documents: Int[Tensor, "b n+1"] | None = None
    sample_ids: NDArray[np.int64]
    corpus: NDArray[np.int64]
    windows: NDArray[np.int64]
    wait_s: float


class _Part(NamedTuple):
    """Steps of one size: the rows of this rank, and how many steps are read at once."""

    steps: range
    slice: slice
    at_once: int

    @property
    def rows(self) -> int:
        return self.slice.stop - self.slice.start


class Loader:
    """Iterates over ``steps`` of a view; a rank may have zero rows when there are more ranks than
    samples. Batches belong to the consumer: none is changed after it was given.

    An error in the reading thread is raised to the consumer. Use it as a context manager, or call
    ``close``, so that the thread ends.

    Args:
        view: what the run reads.
        steps: consecutive training steps.
        device: where ``tokens`` and ``documents`` are put: cpu or cuda.
        unit: each rank gets whole units of so many rows (see ``rank_slice``).

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
        unit: int = 1,
    ) -> None:
        if steps.step != 1 or steps.start < 0:
            raise ValueError(f"steps: got {steps}; they must be consecutive, from 0 on")
        self.view, self.steps = view, steps
        self._parts = [
            self._part(part, rank_slice(view.order.size(part.start), rank, world, unit=unit))
            for part in view.order.even(steps)
        ]
        self._buffers = make_buffers(
            Shape(
                rows=max((part.at_once * part.rows for part in self._parts), default=0),
                width=view.seq_len + 1,
                dtype=np.dtype(next(iter(view.datasets.values())).manifest.dtype),
                documents=view.config.documents != "joined",
            ),
            device,
        )
        self._ready: queue.Queue[tuple[StepBatch, Sent] | BaseException | None]
        self._ready = queue.Queue(max([LEAST_AHEAD, *(part.at_once for part in self._parts)]))
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

    def _part(self, steps: range, mine: slice) -> _Part:
        most = min(READ_ROWS, READ_TOKENS // (self.view.seq_len + 1))
        at_once = max(1, min(most // max(1, mine.stop - mine.start), len(steps)))
        return _Part(steps, mine, at_once)

    def _batches(self) -> Iterator[tuple[StepBatch, Sent]]:
        """The batches in order: looked up for many steps at once, read for some."""
        order, ahead = self.view.order, ReadAhead(self.view.order, self.view.windows)
        for part in self._parts:
            at_once = part.at_once
            together = -(-LOOKUP_SAMPLES // max(1, part.rows * at_once)) * at_once
            for first in range(0, len(part.steps), together):
                steps = part.steps[first : first + together]
                found = order.samples_between(steps.start, steps.stop, part.slice)
                for low in range(0, len(steps), at_once):
                    some = slice(low, low + at_once)
                    ahead.announce(steps[low], steps=len(steps[some]))
                    here = Samples(found.ids[some], found.corpus[some], found.index[some])
                    yield from self._read(steps[some], here)

    def _read(self, steps: range, samples: Samples) -> Iterator[tuple[StepBatch, Sent]]:
        tokens, documents = self._buffers.take()
        count, rows = samples.ids.size, samples.ids.shape[1]
        order = self.view.order
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
                data_step=order.data_step(step),
                step_rows=order.size(step),
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
