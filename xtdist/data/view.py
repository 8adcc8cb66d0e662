"""What a run reads: its datasets, what a sample of each is, and in which order they come."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from xtdist.config import ConfigError, DataError
from xtdist.data.config import MOST_STEPS, DataConfig
from xtdist.data.dataset import TokenDataset
from xtdist.data.order import Order, rank_slice
from xtdist.data.tokenizer import Tokenizer
from xtdist.data.trace import Corpora, Trace, trace_rows
from xtdist.data.windows import Windows, make_windows


@dataclass(frozen=True, kw_only=True)
class View:
    """One split of the corpora of a run.

    Attributes:
        datasets: by name, in the order of their numbers (``Samples.corpus``); a run with a single
            dataset calls it ``data``.
        windows: the samples of each, in the same order.
        order: which of them each step reads.
    """

    config: DataConfig
    split: str
    datasets: dict[str, TokenDataset]
    windows: tuple[Windows, ...]
    order: Order

    @property
    def names(self) -> tuple[str, ...]:
        return self.order.names

    @property
    def seq_len(self) -> int:
        return self.order.seq_len

    @property
    def global_batch(self) -> int:
        """Samples in a step after the warm-up."""
        return self.order.global_batch

    @property
    def tokenizer(self) -> Tokenizer:
        """The one that all corpora were made with."""
        return next(iter(self.datasets.values())).tokenizer

    def identity(self, step: int) -> dict[str, Any]:
        """What fixed the data before training step ``step``, as plain data.

        A checkpoint of ``step`` keeps it, and a run may go on from there only if its own view says
        the same of that step. Phases, skipped steps and corpora that come later are not in it, so
        they may be added.
        """
        read = self.order.read_before(step)
        return {
            "datasets": {name: self.datasets[name].dataset_id for name in read},
            "tokenizer_sha256": self.tokenizer.sha256,
            "seq_len": self.seq_len,
            "documents": self.config.documents,
            **self.order.past(step),
        }

    def trace(self, step: int, rank: int | None = None, world: int = 1, *, unit: int = 1) -> Trace:
        """The documents of the batch of any training step, past or future: of all rows, or of those
        of one of ``world`` ranks, which get whole units of ``unit`` rows.

        Raises:
            ConfigError: there is no such rank or step.
            DataError: a shard that has to be read is missing or damaged.
        """
        if not 0 <= step < MOST_STEPS:
            raise ConfigError(f"step: got {step}; steps are counted from 0 to {MOST_STEPS - 1}")
        count = self.order.size(step)
        whole = slice(0, count)
        rows = whole if rank is None else rank_slice(count, rank, world, unit=unit)
        corpora = Corpora(
            names=self.names, datasets=tuple(self.datasets.values()), windows=self.windows
        )
        found = trace_rows(self.order.samples(step, rows), corpora, first_row=rows.start)
        return Trace(step=step, data_step=self.order.data_step(step), rows=found)


def open_view(
    config: DataConfig,
    split: str = "train",
    *,
    seq_len: int,
    seed: int,
    global_batch: int,
    warmup: tuple[tuple[int, int], ...] = (),
) -> View:
    """Open the datasets of ``config``, local or remote, and put their samples in order.

    Args:
        seq_len: targets in a sample.
        seed: of the run.
        global_batch: samples in a step, of all ranks together.
        warmup: (until, samples) of steps of data before (see ``Order``).

    Raises:
        DataError: a dataset that can't be opened or has not one sample; corpora that were made with
            different tokenizers.
        ConfigError: ``global_batch`` is less than 1.
        ResourceError: the plan of packed documents can't be written.
    """
    datasets = {
        name: TokenDataset.open(path, split, config.verify, config.cache)
        for name, path in config.sources.items()
    }
    _check_tokenizers(datasets)
    windows = tuple(
        make_windows(dataset, seq_len, config.documents, cache=config.cache)
        for dataset in datasets.values()
    )
    order = Order(
        config=config,
        counts={name: w.count for name, w in zip(datasets, windows, strict=True)},
        seq_len=seq_len,
        global_batch=global_batch,
        seed=seed,
        warmup=warmup,
    )
    return View(config=config, split=split, datasets=datasets, windows=windows, order=order)


def _check_tokenizers(datasets: dict[str, TokenDataset]) -> None:
    for (name, one), (other, two) in itertools.pairwise(datasets.items()):
        if one.tokenizer.sha256 != two.tokenizer.sha256:
            raise DataError(
                f"corpora: {name!r} ({one.path}) and {other!r} ({two.path}) were made with "
                f"different tokenizers (sha256 {one.tokenizer.sha256[:12]}… and "
                f"{two.tokenizer.sha256[:12]}…); prepare one of them again with the other's"
            )
