"""Configs of the data path: how a dataset is made and which dataset a run reads."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from xtdist.config import (
    ConfigError,
    NonNegativeFloat,
    configclass,
)
from xtdist.data.storage.config import CacheConfig


def local_path(path: str | Path) -> Path:
    """``path`` with a leading ``~`` replaced by the home folder."""
    return Path(os.path.expanduser(path))


MAX_SLOTS = 2**20
"""Samples after which a mixture repeats its pattern, at most."""
MOST_STEPS, MOST_SAMPLES = 2**40, 2**22
"""Of a run, and of a step: their product, and what is skipped, are numbers of 64 bits."""
CORPUS_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

FirstStep = Annotated[int, Field(ge=0, lt=MOST_STEPS)]
LaterStep = Annotated[int, Field(gt=0, lt=MOST_STEPS)]


@configclass
class CorpusConfig:
    """One dataset of a mixture. ``weight``: its share of the samples, relative to the others; 0 for
    a corpus that only a later phase reads."""

    path: str
    weight: NonNegativeFloat


@configclass
class PhaseConfig:
    """Other weights from a step of data on. Every corpus is named; 0 = not read in this phase."""

    from_step: LaterStep
    weights: dict[str, NonNegativeFloat]


@configclass
class UniformShuffle:
    """Every epoch is one permutation of all windows."""

    kind: Literal["uniform"] = "uniform"


@configclass
class BlockShuffle:
    """For data larger than memory, or remote: blocks of about ``block_tokens`` consecutive tokens
    are permuted, then the windows of each ``group_blocks`` blocks that come one after another. Only
    two groups have to be in memory: the one that is read and the one that comes next."""

    kind: Literal["blocks"] = "blocks"
    block_tokens: Annotated[int, Field(gt=0, le=2**40)] = 4 * 2**20
    group_blocks: Annotated[int, Field(gt=0, le=2**20)] = 32


@configclass
class NoShuffle:
    """Windows in the order of the dataset, the same in every epoch."""

    kind: Literal["none"] = "none"


Shuffle = Annotated[UniformShuffle | BlockShuffle | NoShuffle, Field(discriminator="kind")]
Documents = Literal["joined", "masked", "packed"]
Verify = Literal["touch", "full", "size"]


@configclass
class DataConfig:
    """What a run reads, and in which order. Steps are counted in data: skipping moves training on
    to later data, so phases and skips name the same data whatever else is skipped.

    Attributes:
        path: the one dataset; or
        corpora: the datasets of a mixture by name. Each gives exactly its share of the samples,
            evenly spread, and starts its own next epoch when all of it was seen.
        phases: other weights from later steps on, by ascending ``from_step``.
        skip: half-open ranges ``[first, stop]`` of steps of data that are never trained on.
        shuffle: how windows are permuted; anew in every epoch.
        documents: ``joined`` lets documents run into each other, ``masked`` keeps them from seeing
            each other, ``packed`` also keeps them whole where they fit.
        verify: ``touch`` hashes each shard when it is first read (60 ms per 64 MiB), ``full`` all
            of them on opening, ``size`` trusts file sizes.
        cache: where shards of remote datasets are kept.
    """

    path: str | None = None
    corpora: dict[str, CorpusConfig] = dataclasses.field(default_factory=dict)
    phases: tuple[PhaseConfig, ...] = ()
    skip: tuple[tuple[FirstStep, LaterStep], ...] = ()
    shuffle: Shuffle = UniformShuffle()
    documents: Documents = "joined"
    verify: Verify = "touch"
    cache: CacheConfig = CacheConfig()

    def __post_init__(self) -> None:
        if (self.path is None) == (not self.corpora):
            given = "neither" if self.path is None else "both"
            raise ConfigError(
                f"path: got {given} of path and corpora; give path=<dataset> for one dataset or "
                "corpora={name: {path: <dataset>, weight: 1}, ...} for a mixture"
            )
        for name in self.corpora:
            if not CORPUS_NAME.fullmatch(name):
                raise ConfigError(
                    f"corpora: got the name {name!r}; a name has 1 to 64 letters, digits, '_', '-'"
                )
        # By name: samples are dealt in this order, and a mapping says nothing by its own.
        object.__setattr__(self, "corpora", dict(sorted(self.corpora.items())))
        _check_weights("corpora", {n: c.weight for n, c in self.corpora.items()})
        self._check_phases()
        _check_skip(self.skip)

    def _check_phases(self) -> None:
        if self.phases and not self.corpora:
            raise ConfigError(
                "phases: they change the weights of corpora; give corpora instead of path"
            )
        before = 0
        for i, phase in enumerate(self.phases):
            key, known = f"phases.{i}", ", ".join(self.corpora)
            if phase.from_step <= before:
                raise ConfigError(
                    f"{key}.from_step: got {phase.from_step} after {before}; phases are listed by "
                    "ascending from_step"
                )
            before = phase.from_step
            for name in sorted(phase.weights.keys() - self.corpora.keys()):
                raise ConfigError(f"{key}.weights: got {name!r}; corpora has {known}")
            for name in sorted(self.corpora.keys() - phase.weights.keys()):
                raise ConfigError(
                    f"{key}.weights: no {name!r}; give a weight for each of {known}: 0 "
                    "for a corpus that this phase does not read"
                )
            _check_weights(f"{key}.weights", phase.weights)
        for name, corpus in self.corpora.items():
            if not any([corpus.weight, *(phase.weights[name] for phase in self.phases)]):
                raise ConfigError(
                    f"corpora: {name!r} has weight 0 and no phase reads it; give it a weight or "
                    "take it out"
                )

    @property
    def sources(self) -> dict[str, str]:
        """Paths of the datasets by corpus; one dataset alone is called ``data``."""
        if self.path is not None:
            return {PLAIN: self.path}
        return {name: corpus.path for name, corpus in self.corpora.items()}


PLAIN = "data"
"""Name of the corpus of a run that reads a single dataset."""


def _check_weights(where: str, weights: Mapping[str, float]) -> None:
    if not weights:
        return
    total = sum(weights.values())
    if not 0 < total < math.inf:
        raise ConfigError(
            f"{where}: the weights add up to {total}; give numbers such as 0.7 and 0.3"
        )
    for name, weight in weights.items():
        if 0 < weight * MAX_SLOTS < total:
            raise ConfigError(
                f"{where}: {name!r} has weight {weight} of {total}, less than one sample in "
                f"{MAX_SLOTS}; raise it, or set it to 0 to leave the corpus out"
            )


def _check_skip(skip: tuple[tuple[int, int], ...]) -> None:
    before = 0
    for first, stop in skip:
        if first >= stop:
            raise ConfigError(
                f"skip: got [{first}, {stop}], which is empty; write [first, stop], where stop is "
                "the first step that is read again"
            )
        if first < before:
            raise ConfigError(
                f"skip: got [{first}, {stop}] after a range that ends at {before}; ranges are "
                "listed in order and do not overlap"
            )
        before = stop
