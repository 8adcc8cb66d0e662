"""Which corpus each sample comes from: exact shares, evenly spread, any sample in O(1).

Weights become a cycle of slots, each corpus with a whole number of them (its quota). Within the
cycle the slots are dealt so that after any k of them each corpus has had its share of k to within
one slot (Tijdeman 1980, the chairman assignment problem). A phase starts its own cycle; what each
corpus had given by then is known in advance.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np

from xtdist.data.arrays import Ints
from xtdist.data.config import MAX_SLOTS

EXACT_SLOTS = 2**16
MIN_SLOTS = 2**12
SLOTS_OF_THE_SMALLEST = 64


def quotas_of(weights: Sequence[float]) -> list[int]:
    """Slots of each corpus in one cycle.

    Weights are taken as the decimal numbers that they are written as: 0.7 and 0.3 are 7 and 3 slots
    of a cycle of 10. Where a cycle with the exact shares would be longer than 2^16, one of at least
    4,096 slots is shared out by largest remainder, long enough that the smallest share is off by
    less than 1 %, if that takes no more than 2^20.
    """
    parts = [Fraction(repr(float(w))) for w in weights]
    scale = math.lcm(*(p.denominator for p in parts))
    whole = [int(p * scale) for p in parts]
    common = math.gcd(*whole)
    whole = [w // common for w in whole]
    total = sum(whole)
    if total <= EXACT_SLOTS:
        return whole
    smallest = min(w for w in whole if w)
    slots = MIN_SLOTS
    while slots < MAX_SLOTS and slots * smallest < SLOTS_OF_THE_SMALLEST * total:
        slots *= 2
    quotas = [slots * w // total for w in whole]
    by_remainder = sorted(range(len(whole)), key=lambda c: (-(slots * whole[c] % total), c))
    for c in by_remainder[: slots - sum(quotas)]:
        quotas[c] += 1
    return quotas


class Cycle:
    """The slots of one cycle.

    Attributes:
        quotas: [c] slots of each corpus.
        corpus: [m] the corpus of each slot.
        rank: [m] how many slots of the same corpus come before it.
    """

    def __init__(self, quotas: Sequence[int]) -> None:
        self.quotas = np.array(quotas, np.int64)
        self.corpus = _dealt(quotas)
        order = np.argsort(self.corpus, kind="stable")
        starts = np.cumsum(self.quotas) - self.quotas
        self.rank = np.empty_like(order)
        self.rank[order] = np.arange(len(order)) - np.repeat(starts, self.quotas)

    def counts(self, samples: int) -> Ints:
        """[c] samples of each corpus among the first ``samples``."""
        cycles, rest = divmod(samples, len(self.corpus))
        return cycles * self.quotas + np.bincount(self.corpus[:rest], minlength=len(self.quotas))


def _dealt(quotas: Sequence[int]) -> Ints:
    """Each slot goes to the corpus that must have one soonest, of those that may have one.

    With m slots and c corpora, a corpus of quota q that has had j slots may have slot k (counted
    from 1) once kq/m ≥ j + b, and must have it while kq/m ≤ j + 1 - b, for b = 1/(2c - 2). Whole
    numbers throughout.
    """
    slots, corpora = sum(quotas), sum(1 for q in quotas if q)
    if corpora == 1:
        return np.full(slots, next(c for c, q in enumerate(quotas) if q), np.int64)
    part = 2 * corpora - 2
    jobs = [
        (-(-((j * part + 1) * slots) // (part * q)), ((j + 1) * part - 1) * slots // (part * q), c)
        for c, q in enumerate(quotas)
        for j in range(q)
    ]
    jobs.sort()
    ready: list[tuple[int, int]] = []
    dealt = np.empty(slots, np.int64)
    at = 0
    for k in range(1, slots + 1):
        while at < slots and jobs[at][0] <= k:
            heapq.heappush(ready, jobs[at][1:])
            at += 1
        dealt[k - 1] = heapq.heappop(ready)[1]
    return dealt


class Stage(NamedTuple):
    """``weights`` of the corpora from sample ``start`` on."""

    start: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Mixture:
    """The corpora of all samples of a run. ``stages``: ascending, the first at sample 0."""

    stages: tuple[Stage, ...]

    def locate(self, ids: Ints) -> tuple[Ints, Ints]:
        """The corpus of each sample, and how many samples of that corpus come before it."""
        stages = np.searchsorted(self._starts, ids, side="right") - 1
        if stages.min() == stages.max():
            return self._within(int(stages[0]), ids)
        corpus, local = np.empty_like(ids), np.empty_like(ids)
        for stage in np.unique(stages):
            here = stages == stage
            corpus[here], local[here] = self._within(int(stage), ids[here])
        return corpus, local

    def counts(self, sample: int) -> Ints:
        """[c] samples of each corpus before ``sample``."""
        stage = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return self._given[stage] + self._cycles[stage].counts(sample - self.stages[stage].start)

    def stage_at(self, sample: int) -> Stage:
        return self.stages[int(np.searchsorted(self._starts, sample, side="right")) - 1]

    def _within(self, stage: int, ids: Ints) -> tuple[Ints, Ints]:
        cycle = self._cycles[stage]
        since: Ints = ids - self.stages[stage].start
        cycles = since // len(cycle.corpus)
        slot = since - cycles * len(cycle.corpus)
        corpus: Ints = cycle.corpus[slot]
        local: Ints = self._given[stage][corpus] + cycles * cycle.quotas[corpus] + cycle.rank[slot]
        return corpus, local

    @cached_property
    def _starts(self) -> Ints:
        return np.array([stage.start for stage in self.stages], np.int64)

    @cached_property
    def _cycles(self) -> list[Cycle]:
        return [Cycle(quotas_of(stage.weights)) for stage in self.stages]

    @cached_property
    def _given(self) -> list[Ints]:
        """What each corpus has given when a stage starts."""
        given = [np.zeros(len(self.stages[0].weights), np.int64)]
        for stage, after, cycle in zip(self.stages, self.stages[1:], self._cycles, strict=False):
            given.append(given[-1] + cycle.counts(after.start - stage.start))
        return given
