"""Buffers that rows are read into, and their way to the device.

Token ids cross the bus as narrow as they lie on disk (their bits as int16 or int32) and become
int64 there. On CUDA the buffers are pinned and form a ring: a copy runs on a stream of its own, and
no buffer is filled again before its copy is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtdist.config import ConfigError

# One is filled while the other is copied; copies are queued at once, whoever waits for them.
SLOTS = 2
NARROW = {np.dtype(np.uint16): torch.int16, np.dtype(np.uint32): torch.int32}


class Event(Protocol):
    """A point in the work of a device, as ``torch.cuda.Event``."""

    def synchronize(self) -> None:
        """Wait until the device is there."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Rows under way to the device: tokens int64, documents int32, both (rows, width). ``done``
    tells when they are there; None: they are."""

    tokens: Tensor
    documents: Tensor | None
    done: Event | None = None


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is read at once, one batch or several: (rows, width) of ids as on disk, with document
    numbers or without."""

    rows: int
    width: int
    dtype: np.dtype[Any]
    documents: bool


class Buffers(Protocol):
    """``take`` is called by one thread, then ``send`` for the parts of what it filled, by the same;
    ``receive`` by the thread that computes with the rows, before it does."""

    def take(self) -> tuple[NDArray[Any], NDArray[np.int32] | None]:
        """Buffers for tokens and documents that nothing reads any more."""
        ...

    def send(self, rows: slice) -> Sent:
        """Have some rows of what was taken last, now filled, on their way."""
        ...

    def receive(self, sent: Sent) -> None:
        """What the caller computes from now on comes after the copy."""
        ...


def make_buffers(shape: Shape, device: torch.device | str) -> Buffers:
    """Buffers for what is read at once.

    Raises:
        ConfigError: no such kind of device.
    """
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device: got {device!r}; give cpu, cuda or cuda:<number>") from None
    if device.type == "cpu":
        return HostBuffers(shape)
    if device.type == "cuda":
        return PinnedRing(shape, Cuda(device), slots=SLOTS)
    raise ConfigError(f"device: got {device}; batches can be put on cpu and cuda")


class HostBuffers:
    """One narrow scratch buffer for ids, cast into new memory; document numbers are read in place
    into new memory. Nothing that was sent is written again."""

    def __init__(self, shape: Shape) -> None:
        self._size = (shape.rows, shape.width)
        self._tokens = np.empty(self._size, shape.dtype)
        self._has_documents = shape.documents
        self._documents: NDArray[np.int32] | None = None

    def take(self) -> tuple[NDArray[Any], NDArray[np.int32] | None]:
        self._documents = np.empty(self._size, np.int32) if self._has_documents else None
        return self._tokens, self._documents

    def send(self, rows: slice) -> Sent:
        documents = None if self._documents is None else torch.from_numpy(self._documents[rows])
        tokens = torch.from_numpy(self._tokens[rows].astype(np.int64))
        return Sent(tokens=tokens, documents=documents)

    def receive(self, sent: Sent) -> None:
        pass


class Device(Protocol):
    """What the ring asks of a device that copies beside its computing."""

    def pinned(self, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Host memory that the device can read by itself."""
        ...

    def send(self, tokens: Tensor, documents: Tensor | None) -> Sent:
        """Queue copies of pinned tensors, the ids made int64, and don't wait for them."""
        ...

    def receive(self, sent: Sent) -> None:
        """What the calling thread computes from now on comes after ``sent``, and no copy gets its
        memory before that is done."""
        ...


@dataclass
class _Slot:
    tokens: Tensor
    documents: Tensor | None
    copied: Event | None = None


class PinnedRing:
    """``slots`` pinned buffers in turn. A slot is taken again only when its copy is done."""

    def __init__(self, shape: Shape, device: Device, *, slots: int) -> None:
        self._shape, self._device = shape, device
        size, narrow = (shape.rows, shape.width), NARROW[shape.dtype]
        self._slots = [
            _Slot(
                device.pinned(size, narrow),
                device.pinned(size, torch.int32) if shape.documents else None,
            )
            for _ in range(slots)
        ]
        self._turn = -1

    def take(self) -> tuple[NDArray[Any], NDArray[np.int32] | None]:
        self._turn = (self._turn + 1) % len(self._slots)
        slot = self._slots[self._turn]
        if slot.copied is not None:
            slot.copied.synchronize()
            slot.copied = None
        documents = None if slot.documents is None else slot.documents.numpy()
        return slot.tokens.numpy().view(self._shape.dtype), documents

    def send(self, rows: slice) -> Sent:
        slot = self._slots[self._turn]
        documents = None if slot.documents is None else slot.documents[rows]
        sent = self._device.send(slot.tokens[rows], documents)
        slot.copied = sent.done
        return sent

    def receive(self, sent: Sent) -> None:
        self._device.receive(sent)


class Cuda:
    """A GPU with a stream of its own for copies."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def pinned(self, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=True)

    def send(self, tokens: Tensor, documents: Tensor | None) -> Sent:
        with torch.cuda.stream(self.stream):
            ids = widen(tokens.to(self.device, non_blocking=True))
            if documents is not None:
                documents = documents.to(self.device, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # waiting for it leaves the CPU to others
            done.record(self.stream)
        return Sent(tokens=ids, documents=documents, done=done)

    def receive(self, sent: Sent) -> None:
        computing = torch.cuda.current_stream(self.device)
        if sent.done is not None:
            computing.wait_event(cast(torch.cuda.Event, sent.done))
        for tensor in (sent.tokens, sent.documents):
            if tensor is not None:
                tensor.record_stream(computing)


def widen(ids: Tensor) -> Tensor:
    """Unsigned ids as int64, from their bits in a signed type."""
    return ids.to(torch.int64).bitwise_and_(2 ** (8 * ids.element_size()) - 1)
