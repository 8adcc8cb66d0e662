"""Shuffling in two steps, for data that is larger than memory or far away.

An epoch of n windows is cut into blocks of b windows (the last one has the rest). Blocks are
permuted, each ``group_blocks`` that come one after another are a group, and the windows of a group
are permuted together: only one group has to be at hand, and the next one can be fetched meanwhile.

Everything is O(1): the short block is found by inverting the permutation of the blocks, and all
places behind it are shifted by what it lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xtdist.config import derive_seed
from xtdist.data.arrays import Ints
from xtdist.data.permutation import GOLDEN, Permutations, distinct, mix


class Group(NamedTuple):
    """What is read together.

    Attributes:
        number: of the group in its epoch.
        spans: [k, 2] the windows [first, stop) of its blocks.
        last: whether the epoch ends with it.
    """

    number: int
    spans: Ints
    last: bool


@dataclass(frozen=True, kw_only=True)
class BlockTable:
    """The block orders of some epochs, so that windows of all are looked up together.

    Attributes:
        counts: [e] windows in each epoch.
        seeds: [e] of each epoch.
        block: windows in a block.
        group: blocks in a group.
    """

    counts: Ints
    seeds: list[int]
    block: int
    group: int

    def apply(self, position: Ints, which: Ints | int) -> Ints:
        """The window at ``position`` [n] of epoch ``which`` [n] (or of one for all)."""
        group, place = self._place(position, which)
        place = self._within_group(group, place, which)
        slot, offset = np.divmod(place, self.block)
        slot += group * self.group
        short = self._short_slot[which]
        behind = (slot > short) | ((slot == short) & (offset >= self.block - self._gap[which]))
        behind &= group == short // self.group
        if behind.any():
            place += behind * self._gap[which]
            slot, offset = np.divmod(place, self.block)
            slot += group * self.group
        return self._blocks.apply(slot, which) * self.block + offset

    def group_at(self, position: int) -> Group:
        """The group of a position of epoch 0 of the table."""
        return self.group_numbered(int(self._place(np.array([position]), 0)[0][0]))

    def group_numbered(self, number: int) -> Group:
        """A group of epoch 0 of the table."""
        total = int(self._total[0])
        slots = np.arange(number * self.group, min((number + 1) * self.group, total))
        starts = np.sort(self._blocks.apply(slots)) * self.block
        stops = np.minimum(starts + self.block, self.counts[0])
        return Group(number, np.stack([starts, stops], axis=1), (number + 1) * self.group >= total)

    def _place(self, position: Ints, which: Ints | int) -> tuple[Ints, Ints]:
        """The group of each position, and how many of its windows come before."""
        late = position >= self._shifted_from[which]
        group, place = np.divmod(position + self._gap[which] * late, self.group * self.block)
        return group, place

    def _within_group(self, group: Ints, place: Ints, which: Ints | int) -> Ints:
        """``place`` permuted within its group, by a key of the epoch and the group."""
        whole, epochs = self.group * self.block, len(self.seeds)
        found, index = distinct(group * epochs + which)
        groups, epoch = np.divmod(found, epochs)
        sizes = np.minimum(whole, self._total[epoch] * self.block - groups * whole)
        sizes -= self._gap[epoch] * (groups == self._short_slot[epoch] // self.group)
        seeds = mix(self._group_keys[epoch] + groups.astype(np.uint64) * GOLDEN)
        return Permutations.make(sizes, seeds).apply(place, index)

    @cached_property
    def _total(self) -> Ints:
        """Blocks in each epoch."""
        return -(-self.counts // self.block)

    @cached_property
    def _gap(self) -> Ints:
        """Windows that the last block of the data lacks."""
        return self._total * self.block - self.counts

    @cached_property
    def _blocks(self) -> Permutations:
        return Permutations.make(self._total, [derive_seed(s, "blocks") for s in self.seeds])

    @cached_property
    def _group_keys(self) -> NDArray[np.uint64]:
        return np.array([derive_seed(s, "groups") for s in self.seeds], np.uint64)

    @cached_property
    def _short_slot(self) -> Ints:
        """Where the last block of the data comes."""
        return self._blocks.invert(self._total - 1, np.arange(len(self.seeds)))

    @cached_property
    def _shifted_from(self) -> Ints:
        """The first position behind the group with the short block."""
        slots = np.minimum((self._short_slot // self.group + 1) * self.group, self._total)
        return slots * self.block - self._gap
