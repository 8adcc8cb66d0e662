"""The buffers of the loader; a device that copies as late as it may stands in for a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.data.ring import Buffers, HostBuffers, PinnedRing, Sent, Shape, make_buffers, widen


class LateDevice:
    """Puts every copy off until an event behind it is waited for: a buffer that is filled again
    before that shows in what arrives."""

    def __init__(self) -> None:
        self.queue: list[tuple[Tensor, Tensor]] = []
        self.buffers = 0

    def pinned(self, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        self.buffers += 1
        return torch.full(size, -1, dtype=dtype)

    def send(self, tokens: Tensor, documents: Tensor | None) -> Sent:
        ids = torch.full(tokens.shape, -5)
        self.queue.append((ids, tokens))
        if documents is not None:
            there = torch.full_like(documents, -5)
            self.queue.append((there, documents))
            documents = there
        return Sent(tokens=ids, documents=documents, done=LateEvent(self, len(self.queue)))

    def receive(self, sent: Sent) -> None:
        assert sent.done is not None
        sent.done.synchronize()


class LateEvent:
    def __init__(self, device: LateDevice, until: int) -> None:
        self.device, self.until = device, until

    def synchronize(self) -> None:
        done = 0
        for target, host in self.device.queue[: self.until]:
            if target.dtype == host.dtype:
                target.copy_(host)
            else:
                target.copy_(widen(host))
            done += 1
        self.device.queue[:done] = [(t, t) for t, _ in self.device.queue[:done]]


SHAPE = Shape(rows=3, width=5, dtype=np.dtype(np.uint16), documents=True)


def fill(buffers: Buffers, value: int) -> Sent:
    tokens, documents = buffers.take()
    tokens[:] = value
    if documents is not None:
        documents[:] = -value
    return buffers.send(slice(0, len(tokens)))


def holds(sent: Sent, value: int) -> bool:
    assert sent.documents is not None
    assert sent.tokens.dtype == torch.int64
    assert sent.documents.dtype == torch.int32
    return bool((sent.tokens == value).all() and (sent.documents == -value).all())


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
@pytest.mark.parametrize("behind", [0, 1, 2, 4])
def test_no_buffer_is_filled_again_before_its_copy_is_done(slots: int, behind: int) -> None:
    """The consumer takes each batch ``behind`` batches after it was sent."""
    device = LateDevice()
    ring = PinnedRing(SHAPE, device, slots=slots)
    values = list(range(65535, 65515, -1))
    sent: list[Sent] = []
    for i, value in enumerate(values):
        sent.append(fill(ring, value))
        if i >= behind:
            ring.receive(sent[i - behind])
            assert holds(sent[i - behind], values[i - behind])
    for late, value in zip(sent, values, strict=True):
        ring.receive(late)
        assert holds(late, value)
    assert device.buffers == 2 * slots


def test_a_ring_that_would_not_wait_fails_the_test_above(monkeypatch: pytest.MonkeyPatch) -> None:
    device = LateDevice()
    ring = PinnedRing(SHAPE, device, slots=1)
    first = fill(ring, 1)
    monkeypatch.setattr(LateEvent, "synchronize", lambda self: None)
    fill(ring, 2)
    monkeypatch.undo()
    ring.receive(first)
    assert not holds(first, 1)


def test_rows_read_at_once_are_sent_in_parts() -> None:
    for buffers in (PinnedRing(SHAPE, LateDevice(), slots=2), HostBuffers(SHAPE)):
        kept = []
        for first in (0, 10, 20):
            tokens, documents = buffers.take()
            assert documents is not None
            tokens[:] = documents[:] = np.arange(first, first + 3)[:, None]
            kept += [(first, buffers.send(slice(0, 1))), (first + 1, buffers.send(slice(1, 3)))]
        for first, sent in reversed(kept):
            buffers.receive(sent)
            assert sent.documents is not None
            for part in (sent.tokens, sent.documents):
                assert part[0].tolist() == [first] * 5
                assert part[-1].tolist() == [first + len(part) - 1] * 5


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_ids_keep_their_values_as_bits_of_signed_numbers(dtype: type) -> None:
    ids = np.array([[0, 1, 2**15 - 1, 2**15, np.iinfo(dtype).max]], dtype)
    narrow = torch.from_numpy(ids.view(np.int16 if dtype is np.uint16 else np.int32))
    assert widen(narrow).tolist() == ids.tolist()


@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_what_was_sent_from_the_host_stays_as_it_was(documents: bool, dtype: type) -> None:
    shape = Shape(rows=2, width=4, dtype=np.dtype(dtype), documents=documents)
    buffers = make_buffers(shape, torch.device("cpu"))
    assert isinstance(buffers, HostBuffers)
    sent = [fill(buffers, value) for value in (65535, 3, 4)]
    for batch, value in zip(sent, (65535, 3, 4), strict=True):
        buffers.receive(batch)
        assert batch.tokens.tolist() == [[value] * 4] * 2
        assert (batch.documents is not None) == documents
        assert batch.documents is None or batch.documents.tolist() == [[-value] * 4] * 2


def test_other_devices_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="meta"):
        make_buffers(SHAPE, torch.device("meta"))
