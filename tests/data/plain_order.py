"""The order of samples by its definition: one sample at a time, in integers that can't overflow,
with lists of everything."""

from __future__ import annotations

import math

from xtdist.config import derive_seed
from xtdist.data import DataConfig, Order
from xtdist.data.mixture import Cycle, quotas_of

ONES = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = mixed(x)
    return x ^ (x >> 31)


def mixed(x: int) -> int:
    """Without the last step: that would change the lowest bit of the upper half."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & ONES
    return ((x ^ (x >> 27)) * 0x94D049BB133111EB) & ONES


def permuted(value: int, n: int, key: int) -> int:
    """Where ``value`` goes in the permutation of [0, n) of a key."""
    rows = math.isqrt(n)
    while rows * rows < n:
        rows += 1
    columns = (n + rows - 1) // rows
    while True:
        row, column = value // columns, value % columns
        for i in range(1, 7):
            round_key = mix((key + i * GOLDEN) & ONES)
            if i % 2:
                noise = mixed((column + round_key) & ONES) >> 32
                row = (row + (noise * rows >> 32)) % rows
            else:
                noise = mixed((row + round_key) & ONES) >> 32
                column = (column + (noise * columns >> 32)) % columns
        value = row * columns + column
        if value < n:
            return value


def epoch_of_blocks(n: int, key: int, *, block: int, group: int) -> list[int]:
    """All windows of an epoch: blocks permuted, the windows of each group permuted."""
    blocks = [list(range(i, min(i + block, n))) for i in range(0, n, block)]
    by_block = [
        blocks[permuted(i, len(blocks), derive_seed(key, "blocks"))] for i in range(len(blocks))
    ]
    order: list[int] = []
    for number, first in enumerate(range(0, len(blocks), group)):
        together = [w for b in by_block[first : first + group] for w in b]
        own = mix((derive_seed(key, "groups") + number * GOLDEN) & ONES)
        order += [together[permuted(i, len(together), own)] for i in range(len(together))]
    return order


class PlainOrder:
    """Sample by sample from the start, counting what each corpus has given."""

    def __init__(self, order: Order) -> None:
        self.order, self.config = order, order.config
        self.names = list(self.config.sources)
        self.epochs: dict[tuple[str, int], list[int]] = {}

    def steps(self, count: int) -> list[list[tuple[int, str, int]]]:
        """(sample id, corpus, window) of the first training steps."""
        config, first = self.config, 0
        given = dict.fromkeys(self.names, 0)
        weights: dict[str, float] = {n: c.weight for n, c in config.corpora.items()} or {"data": 1}
        starts = {0: weights} | {phase.from_step: phase.weights for phase in config.phases}
        found: list[list[tuple[int, str, int]]] = []
        step = slot = 0
        while len(found) < count:
            if step in starts:
                slot, dealt = 0, Cycle(quotas_of([starts[step][n] for n in self.names])).corpus
            row = []
            size = next((n for until, n in self.order.warmup if step < until), None)
            stop = first + (self.order.global_batch if size is None else size)
            for sample in range(first, stop):
                name = self.names[dealt[slot % len(dealt)]]
                row.append((sample, name, self.window(name, given[name])))
                given[name] += 1
                slot += 1
            if not any(first <= step < stop for first, stop in config.skip):
                found.append(row)
            first, step = stop, step + 1
        return found

    def window(self, name: str, local: int) -> int:
        epoch, position = divmod(local, self.order.counts[name])
        if (name, epoch) not in self.epochs:
            self.epochs[name, epoch] = self.epoch(name, epoch)
        return self.epochs[name, epoch][position]

    def epoch(self, name: str, epoch: int) -> list[int]:
        n, shuffle = self.order.counts[name], self.config.shuffle
        labels = [] if name == "data" else [name]
        key = derive_seed(self.order.seed, "order", *labels, epoch)
        if shuffle.kind == "none":
            return list(range(n))
        if shuffle.kind == "uniform":
            return [permuted(i, n, key) for i in range(n)]
        block = max(1, shuffle.block_tokens // self.order.seq_len)
        return epoch_of_blocks(n, key, block=block, group=shuffle.group_blocks)


def make_order(
    weights: dict[str, float] | None,
    counts: dict[str, int],
    *,
    batch: int,
    seed: int = 0,
    warmup: tuple[tuple[int, int], ...] = (),
    **settings: object,
) -> Order:
    """An order of corpora (of a single dataset for None) in windows of one token."""
    corpora = {name: {"path": name, "weight": w} for name, w in (weights or {}).items()}
    source: dict[str, object] = {"corpora": corpora} if corpora else {"path": "x"}
    config = DataConfig(**source, **settings)  # type: ignore[arg-type]
    return Order(
        config=config, counts=counts, seq_len=1, global_batch=batch, seed=seed, warmup=warmup
    )
