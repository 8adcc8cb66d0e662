"""Sample order as a pure function: (seed, step) → windows. No index files, nothing to save.

A training step reads the step of data that is left when skipped ones are taken out; its samples are
dealt to the corpora by the mixture; the i-th sample of a corpus is position i mod n of its epoch
i div n, and each epoch visits its n windows in its own keyed order. The global batch is cut by
rank, so the order does not depend on the number of workers; any step is reached in O(1).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from xtdist.config import ConfigError, DataError, derive_seed, to_mapping
from xtdist.data.arrays import Ints
from xtdist.data.blocks import BlockTable
from xtdist.data.config import PLAIN, BlockShuffle, DataConfig, NoShuffle
from xtdist.data.mixture import Mixture, Stage
from xtdist.data.permutation import Permutations, distinct
from xtdist.data.sizes import Sizes
from xtdist.data.skip import Skip


@dataclass(frozen=True)
class Samples:
    """Samples of one step [rows] or of several [steps, rows].

    Attributes:
        ids: their numbers in the whole run. They never repeat, so noise derived from them differs
            between epochs; skipping leaves out numbers and changes no other.
        corpus: the number of the corpus of each (its place in the config).
        index: the window of that corpus.
    """

    ids: Ints
    corpus: Ints
    index: Ints


class Ahead(NamedTuple):
    """Windows of a corpus that are read together, now or next: ``spans`` [k, 2] of [first, stop).
    (``corpus``, ``epoch``, ``group``) names them in the whole run."""

    corpus: int
    epoch: int
    group: int
    spans: Ints


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order in which a run sees its corpora.

    Attributes:
        config: weights, phases, skipped steps and the kind of shuffle.
        counts: windows of each corpus.
        seq_len: tokens in a window, which blocks are counted in.
        global_batch: samples per step, of all ranks together, after the warm-up.
        warmup: (until, samples): steps of data before ``until`` have other sizes (see ``Sizes``).

    Raises:
        DataError: a corpus has no window.
        ConfigError: ``global_batch`` is none, or beyond what 64 bits can count.

    Example:
        >>> order = Order(
        ...     config=DataConfig(path="data/demo"), counts={"data": 10}, seq_len=8,
        ...     global_batch=4, seed=0,
        ... )
        >>> order.samples(2).ids.tolist()
        [8, 9, 10, 11]
        >>> sorted(order.samples_between(0, 5).index.flat) == sorted([*range(10)] * 2)
        True
    """

    config: DataConfig
    counts: Mapping[str, int]
    seq_len: int
    global_batch: int
    seed: int
    warmup: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for name, path in self.config.sources.items():
            if self.counts[name] < 1:
                raise DataError(
                    f"{path}: the dataset is shorter than one sample of {self.seq_len} + 1 tokens; "
                    "take a smaller seq_len or more text"
                )
        _ = self.sizes

    @cached_property
    def sizes(self) -> Sizes:
        """Samples of each step of data."""
        return Sizes(self.global_batch, self.warmup)

    @property
    def names(self) -> tuple[str, ...]:
        """The corpora by number."""
        return tuple(self.config.sources)

    def samples(self, step: int, rows: slice = slice(None)) -> Samples:
        """The samples of a training step, or those ``rows`` of them: arrays [rows]."""
        found = self.samples_between(step, step + 1, rows)
        return Samples(found.ids[0], found.corpus[0], found.index[0])

    def samples_between(self, first: int, stop: int, rows: slice = slice(None)) -> Samples:
        """The samples of training steps [first, stop): arrays [steps, rows]. About 0.2 us per
        sample if there are a thousand, much more if there are few.

        Raises:
            ValueError: the steps are not all of one size (see ``even``).
        """
        steps = self._skip.data_steps(np.arange(first, stop, dtype=np.int64))
        sizes = self.sizes.of(steps)
        if len(steps) and sizes[0] != sizes[-1]:
            raise ValueError(f"steps {first} to {stop}: they have different numbers of samples")
        size = int(sizes[0]) if len(steps) else 0
        ids = self.sizes.starts(steps)[:, None] + np.arange(size)[rows]
        if not ids.size:
            return Samples(ids, ids, ids)
        corpus, local = self._mixture.locate(ids.reshape(-1))
        index = self._windows(corpus, local)
        return Samples(ids, corpus.reshape(ids.shape), index.reshape(ids.shape))

    def data_step(self, step: int) -> int:
        """The step of data that a training step reads."""
        return self._skip.data_step(step)

    def size(self, step: int) -> int:
        """Samples of a training step, of all ranks together."""
        return int(self.sizes.of(np.array([self._skip.data_step(step)]))[0])

    def even(self, steps: range) -> Iterator[range]:
        """``steps`` in parts of which each has steps of one size."""
        first = steps.start
        for change in self.sizes.changes():
            stop = min(self._skip.training_step(change), steps.stop)
            if first < stop:
                yield range(first, stop)
                first = stop
        if first < steps.stop:
            yield range(first, steps.stop)

    def ahead(self, step: int) -> list[Ahead]:
        """What a block shuffle reads from ``step`` on: of each corpus that is read then, the group
        of blocks that it is in and the one after. Empty for other shuffles."""
        shuffle = self.config.shuffle
        if not isinstance(shuffle, BlockShuffle):
            return []
        sample = self._first_sample(self._skip.data_step(step))
        found = []
        for corpus, local in enumerate(self._mixture.counts(sample).tolist()):
            if self._mixture.stage_at(sample).weights[corpus]:
                epoch, position = divmod(local, int(self._counts[corpus]))
                found += self._groups_from(corpus, epoch, position)
        return found

    def _groups_from(self, corpus: int, epoch: int, position: int) -> list[Ahead]:
        """The group of a position and the one after it."""
        table = self._made(((corpus, epoch),))
        assert isinstance(table, BlockTable)
        group = table.group_at(position)
        now = Ahead(corpus, epoch, group.number, group.spans)
        if not group.last:
            after = table.group_numbered(group.number + 1)
            return [now, Ahead(corpus, epoch, after.number, after.spans)]
        table = self._made(((corpus, epoch + 1),))
        assert isinstance(table, BlockTable)
        return [now, Ahead(corpus, epoch + 1, 0, table.group_numbered(0).spans)]

    def past(self, step: int) -> dict[str, Any]:
        """What fixed the data of the training steps before ``step``, as plain data. A run that
        resumes at ``step`` must have the same; phases and skips that come later are its own."""
        end = self._skip.end(step)
        weights = {n: c.weight for n, c in self.config.corpora.items()}
        phases = [p for p in self.config.phases if p.from_step < end]
        sizes = self.sizes.before(end)
        warmup = [[until, size] for (_, size), (until, _) in itertools.pairwise(sizes)]
        return {
            "seed": self.seed,
            "global_batch": sizes[-1][1],
            "warmup": warmup,
            "shuffle": to_mapping(self.config.shuffle),
            "weights": _positive(weights),
            "phases": [{"from_step": p.from_step, "weights": _positive(p.weights)} for p in phases],
            "skip": self._skip.past(step),
        }

    def read_before(self, step: int) -> list[str]:
        """The corpora that training steps before ``step`` could read."""
        past = self.past(step)
        stages = [past["weights"], *(phase["weights"] for phase in past["phases"])]
        plain = not self.config.corpora
        return [n for n in self.names if plain or any(n in stage for stage in stages)]

    def _windows(self, corpus: Ints, local: Ints) -> Ints:
        """The window of the ``local``-th sample of each corpus."""
        counts = self._counts if len(self._counts) == 1 else self._counts[corpus]
        epochs, position = np.divmod(local, counts)
        if isinstance(self.config.shuffle, NoShuffle):
            return position
        found, which = distinct(epochs * len(self._counts) + corpus)
        keys = [divmod(key, len(self._counts))[::-1] for key in found.tolist()]
        return self._table(tuple(keys)).apply(position, which)

    def _table(self, keys: tuple[tuple[int, int], ...]) -> Permutations | BlockTable:
        """The orders of some (corpus, epoch). The last table is kept: most lookups ask for it."""
        known, table = self._kept[0]
        if known != keys:
            table = self._made(keys)
            self._kept[0] = keys, table  # in one step: threads may ask at the same time
        return table

    def _made(self, keys: tuple[tuple[int, int], ...]) -> Permutations | BlockTable:
        counts, seeds = self._counts[[c for c, _ in keys]], [self._key(c, e) for c, e in keys]
        shuffle = self.config.shuffle
        if not isinstance(shuffle, BlockShuffle):
            return Permutations.make(counts, seeds)
        block = max(1, shuffle.block_tokens // self.seq_len)
        return BlockTable(counts=counts, seeds=seeds, block=block, group=shuffle.group_blocks)

    def _key(self, corpus: int, epoch: int) -> int:
        """A corpus keeps its order when others come or go; one dataset alone has no name."""
        name = self.names[corpus]
        return derive_seed(self.seed, "order", *([] if name == PLAIN else [name]), epoch)

    def _first_sample(self, data_step: int) -> int:
        return int(self.sizes.starts(np.array([data_step]))[0])

    @cached_property
    def _kept(self) -> list[Any]:
        return [((), None)]

    @cached_property
    def _counts(self) -> Ints:
        return np.array([self.counts[name] for name in self.names], np.int64)

    @cached_property
    def _skip(self) -> Skip:
        return Skip(self.config.skip)

    @cached_property
    def _mixture(self) -> Mixture:
        config = self.config
        stages = [Stage(0, tuple(c.weight for c in config.corpora.values()) or (1.0,))]
        for phase in config.phases:
            weights = tuple(phase.weights[name] for name in config.corpora)
            stages.append(Stage(self._first_sample(phase.from_step), weights))
        return Mixture(tuple(stages))


def _positive(weights: Mapping[str, float]) -> dict[str, float]:
    return {name: weight for name, weight in weights.items() if weight}


def rank_slice(global_batch: int, rank: int, world: int, *, unit: int = 1) -> slice:
    """Rank's rows of the global batch, in whole units of ``unit`` rows (the last one may be less);
    the units of two ranks differ by at most one."""
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank}: there are {world} ranks, counted from 0")
    units = -(-global_batch // unit)
    first, stop = (units * r // world * unit for r in (rank, rank + 1))
    return slice(min(first, global_batch), min(stop, global_batch))
