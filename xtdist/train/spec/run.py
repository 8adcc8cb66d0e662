"""RunSpec: everything that a training run is. One YAML file describes one.

The user gives tokens per step; micro-batches and accumulation follow from that, from the number of
workers and from ``batch.micro_batch_tokens``, and are printed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import ClassVar

from xtdist.config import ConfigError, NonNegativeInt, configclass, within
from xtdist.config.load import Expand
from xtdist.model.config import ModelConfig
from xtdist.model.options import resolve
from xtdist.objective.base import check_trainable
from xtdist.objective.checks import (
    check_critic_config,
    check_mup_objective,
    check_separable,
    check_terms,
)
from xtdist.objective.config import AutoregressiveConfig, ObjectiveConfig
from xtdist.optim.config import AdamWConfig, MuonConfig, OptimConfig
from xtdist.track.config import TrackConfig
from xtdist.train.spec.aside import check_aside
from xtdist.train.spec.batch import BatchSpec, Split, check_batch, split_rows
from xtdist.train.spec.checkpoint import CheckpointSpec
from xtdist.train.spec.data import RunDataConfig
from xtdist.train.spec.engine import EngineSpec, NvmeOffload
from xtdist.train.spec.loop import LoopSpec
from xtdist.train.spec.metrics import check_metrics
from xtdist.train.spec.sequence import check_sequence_parallel
from xtdist.train.spec.stability import StabilitySpec
from xtdist.train.spec.start import expand_model
from xtdist.train.spec.workers import WorkersSpec

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


@configclass
class RunSpec:
    """The whole config tree of a run. Its folder is ``<output>/<name>``.

    A file or an override may name a preset: ``model: {preset: llama-125m, depth: 24}``, or weights
    whose model it is: ``{preset: weights:FOLDER}``.
    """

    presets: ClassVar[Mapping[str, Expand]] = {"model": expand_model}

    name: str
    output: str = "runs"
    seed: NonNegativeInt = 0
    data: RunDataConfig
    model: ModelConfig
    objective: ObjectiveConfig = AutoregressiveConfig()
    optim: OptimConfig = AdamWConfig()
    batch: BatchSpec = BatchSpec()
    loop: LoopSpec
    checkpoint: CheckpointSpec = CheckpointSpec()
    engine: EngineSpec = EngineSpec()
    workers: WorkersSpec = WorkersSpec()
    stability: StabilitySpec = StabilitySpec()
    track: TrackConfig = TrackConfig()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name: got {self.name!r}; it names a folder: letters, digits, '.', '_', '-', "
                "at most 100 of them"
            )
        with within(type(self), "model"):
            resolve(self.model)
        causal = isinstance(self.objective, AutoregressiveConfig)
        check_trainable(self.model, causal=causal, name="model", alone=True)
        if self.data.documents != "joined":
            check_separable(self.objective, self.model, documents=self.data.documents)
        with within(type(self), "objective"):
            check_terms(self.objective, self.model)
            check_critic_config(self.objective)
        check_mup_objective(self.objective, self.model)
        if self.model.max_seq_len and self.model.max_seq_len < self.data.seq_len:
            raise ConfigError(
                f"model.max_seq_len: got {self.model.max_seq_len}, less than data.seq_len "
                f"({self.data.seq_len}): leave it out or raise it"
            )
        with within(type(self), "batch"):
            check_batch(self.batch, seq_len=self.data.seq_len)
        if self.engine.reduction == "canonical" and self.optim.kind != "adamw":
            raise ConfigError(
                f"engine.reduction: got 'canonical' with optim.kind {self.optim.kind!r}, whose "
                "numbers may depend on the number of workers; take adamw, or reduction=fast"
            )
        if isinstance(self.optim, MuonConfig) and isinstance(
            self.engine.offload_optimizer, NvmeOffload
        ):
            raise ConfigError(
                "optim.kind: got 'muon' with engine.offload_optimizer on nvme, where its state is "
                "not kept; set engine.offload_optimizer.kind=cpu, or optim.kind=adamw"
            )
        if self.engine.reduction == "canonical" and self.batch.micro_batch_tokens == "auto":
            raise ConfigError(
                "batch.micro_batch_tokens: got 'auto' with engine.reduction 'canonical', whose "
                "micro-batches are the same wherever the run is; give a number"
            )
        check_sequence_parallel(self)
        check_aside(self)
        check_metrics(self)
        self._check_hpz(self.engine.hpz_partition_size)
        if self.global_batch < self.data_place(0, self.workers.count)[1]:
            raise ConfigError(
                f"workers.count: got {self.workers.count}; a step of {self.global_batch} sequences "
                "has work for no more: raise batch.tokens_per_step or take fewer workers"
            )

    def _check_hpz(self, size: int) -> None:
        if self.workers.count % size:
            raise ConfigError(
                f"engine.hpz_partition_size: got {size}, which does not divide workers.count "
                f"({self.workers.count}); take the GPUs of a host, or 1"
            )
        if size > 1 and self.workers.least < self.workers.count:
            raise ConfigError(
                f"workers.min_count: got {self.workers.min_count} with engine.hpz_partition_size "
                f"{size}, which may not divide what is left of the workers; leave one of them out"
            )

    @property
    def global_batch(self) -> int:
        """Sequences in one optimizer step, over all workers, after the warm-up."""
        return self.batch.tokens_per_step // self.data.seq_len

    @property
    def batch_warmup(self) -> tuple[tuple[int, int], ...]:
        """(until, sequences): what a step has before step ``until`` of the data."""
        stages = self.batch.warmup
        return tuple((s.until_step, s.tokens_per_step // self.data.seq_len) for s in stages)

    def data_place(self, rank: int, world: int) -> tuple[int, int]:
        """Which of how many parts of a step's sequences a worker of ``world`` has: all that share
        sequences have the same. A process alone has all of them."""
        shared_by = self.engine.sequence_parallel
        return rank // shared_by, max(world // shared_by, 1)

    def split(self, world: int, *, rows: int | None = None) -> Split:
        """How ``world`` workers share a step of ``rows`` sequences (None: as after the warm-up)."""
        return split_rows(
            self.global_batch if rows is None else rows,
            most=self.batch.most_rows(self.data.seq_len // self.engine.sequence_parallel),
            world=self.data_place(0, world)[1],
            fixed=self.engine.reduction == "canonical",
        )


def fit_to_data(spec: RunSpec, *, vocab_size: int, required: int | None = None) -> RunSpec:
    """Fill in what follows from the rest: vocabulary and longest sequence. A model that begins with
    weights has their vocabulary, which must hold the first ``required`` ids.

    Raises:
        ConfigError: the model is given these and they contradict the data.
    """
    model, seq_len = spec.model, spec.data.seq_len
    least = vocab_size if required is None or spec.data.documents == "packed" else required
    own = spec.checkpoint.start_from is not None and model.num_tokens >= least
    if model.num_tokens not in (0, vocab_size) and not own:
        raise ConfigError(
            f"model.num_tokens: got {model.num_tokens}, but the dataset's tokenizer has "
            f"{vocab_size}: leave it out"
        )
    model = dataclasses.replace(
        model, num_tokens=model.num_tokens or vocab_size, max_seq_len=model.max_seq_len or seq_len
    )
    return dataclasses.replace(spec, model=model)
