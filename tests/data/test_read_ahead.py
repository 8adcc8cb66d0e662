"""What is announced of a block shuffle, and when."""

from __future__ import annotations

import numpy as np

from xtdist.data.order import Ahead
from xtdist.data.read_ahead import ReadAhead


class Listener:
    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def will_need(self, first: int, stop: int) -> None:
        self.told.append((first, stop))


class Groups:
    """Groups of 4 blocks of 10 windows, one after another; two samples a step."""

    def size(self, step: int) -> int:
        return 2

    def ahead(self, step: int) -> list[Ahead]:
        group = step * 2 // 40
        return [Ahead(0, 0, g, self.spans(g)) for g in (group, group + 1)]

    @staticmethod
    def spans(group: int) -> np.ndarray:
        firsts = 40 * group + 10 * np.arange(4)
        return np.stack([firsts, firsts + 10], axis=1)


def test_the_group_in_use_is_announced_at_once_and_the_next_bit_by_bit() -> None:
    listener = Listener()
    ahead = ReadAhead(Groups(), [listener])  # type: ignore[list-item]
    ahead.announce(0, steps=1)
    assert listener.told == [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50)]
    for step in range(1, 20):
        ahead.announce(step, steps=1)
        assert max(stop for _, stop in listener.told) <= 40 + 4 * (step + 1) + 10 * (step + 1)
    assert sorted(listener.told) == [(i, i + 10) for i in range(0, 80, 10)]


def test_every_block_is_announced_once_and_in_time() -> None:
    listener = Listener()
    ahead = ReadAhead(Groups(), [listener])  # type: ignore[list-item]
    for step in range(0, 200, 5):
        ahead.announce(step, steps=5)
        assert max(stop for _, stop in listener.told) >= min(40 * (step * 2 // 40 + 1), 400)
    assert len(listener.told) == len(set(listener.told))


def test_a_jump_into_a_later_group_announces_it_whole() -> None:
    listener = Listener()
    ahead = ReadAhead(Groups(), [listener])  # type: ignore[list-item]
    ahead.announce(0, steps=1)
    ahead.announce(20, steps=1)
    assert {(40, 50), (50, 60), (60, 70), (70, 80)} <= set(listener.told)
