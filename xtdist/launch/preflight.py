"""Everything that can be known to be wrong before a single worker starts."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from xtdist.checkpoint import CheckpointStore
from xtdist.checkpoint.chat_template import ChatTemplate
from xtdist.checkpoint.start import check_start
from xtdist.checkpoint.storage import place_of
from xtdist.checkpoint.weights import locate_weights
from xtdist.config import CheckpointError, ConfigError, ResourceError
from xtdist.data import Tokenizer
from xtdist.data.storage.location import is_remote
from xtdist.launch.datasets import (
    Corpus,
    check_datasets,
    corpora_of,
    data_lines,
    known_data,
    local_path,
    with_absolute_paths,
)
from xtdist.model import TransformerWrapper, muon_parameters
from xtdist.objective import Objective, build_objective
from xtdist.optim import check_schedule, param_groups
from xtdist.train.hardware import resolve_engine
from xtdist.train.spec import BatchSpec, RunSpec, Split, fit_to_data
from xtdist.train.spec.aside import AsideSpec
from xtdist.train.stability import interventions
from xtdist.train.state import check_identity, checkpoint_bytes, identity


@dataclass(frozen=True)
class Plan:
    """A run that can start. ``done_step``: where it goes on (0: from the beginning)."""

    spec: RunSpec
    folder: Path
    corpora: tuple[Corpus, ...]
    gpus_per_worker: int
    parameters: int
    done_step: int

    @property
    def finished(self) -> bool:
        return self.done_step >= self.spec.loop.steps

    def lines(self) -> list[str]:
        """The plan in words."""
        s = self.spec
        split = s.split(s.workers.count)
        return [
            f"run      {s.name} in {self.folder}",
            f"model    {self.parameters / 1e6:.2f} M parameters, {s.objective.kind}",
            *data_lines(s.data, self.corpora),
            f"step     {s.batch.tokens_per_step} tokens = {s.global_batch} sequences of "
            f"{s.data.seq_len}: {s.workers.count} workers x {_micro_batches(s, split)} (at most "
            f"{split.share} sequences a worker)",
            *_warmup_lines(s.batch),
            f"engine   ZeRO-{s.engine.zero_stage}, {s.engine.precision}, "
            f"{'GPU' if self.gpus_per_worker else 'CPU'}"
            + (", reduction: canonical" if s.engine.reduction == "canonical" else ""),
            *_aside_lines(s.loop.aside),
        ]


def _warmup_lines(batch: BatchSpec) -> list[str]:
    """What the first steps have instead."""
    sizes = [f"{s.tokens_per_step} tokens before step {s.until_step}" for s in batch.warmup]
    rows = [f"rows of {s.seq_len} before step {s.until_step}" for s in batch.seq_len_warmup]
    return [f"warm-up  {', '.join(each)}" for each in (sizes, rows) if each]


def _aside_lines(aside: AsideSpec | None) -> list[str]:
    if aside is None:
        return []
    return [f"aside    validations and samples of checkpoints, by a task of {aside.resources}"]


def _micro_batches(spec: RunSpec, split: Split) -> str:
    if spec.batch.micro_batch_tokens == "auto":
        return "micro-batches that fill their memory"
    shared_by = spec.engine.sequence_parallel
    shared = f", shared by {shared_by} workers each" if shared_by > 1 else ""
    return f"{split.accumulation} micro-batches of {split.micro_batch}{shared}"


def resolve(spec: RunSpec) -> RunSpec:
    """``spec`` completed from its dataset. Needs no cluster, so mistakes show at once.

    Paths become absolute: the workers run in another folder.

    Raises:
        UserError: dataset, model, batch or schedule can't be what the spec says.
    """
    spec = _with_paths(spec)
    tokenizer = check_datasets(spec.data)
    check_schedule(spec.optim.schedule, total_steps=spec.loop.steps)
    spec = fit_to_data(spec, vocab_size=tokenizer.vocab_size, required=tokenizer.required_ids)
    objective = _built(spec, tokenizer)
    param_groups(objective, spec.optim, muon_parameters(objective))
    _check_samples(spec, tokenizer)
    return spec


def _built(spec: RunSpec, tokenizer: Tokenizer) -> Objective:
    """What the workers build, counted and not allocated: it raises what they would."""
    with torch.device("meta"):
        return build_objective(
            spec.objective,
            TransformerWrapper.from_config(spec.model),
            mask_id=tokenizer.mask_id,
            pad_id=tokenizer.pad_id,
        )


def _with_paths(spec: RunSpec) -> RunSpec:
    output = str(local_path("output", spec.output))
    checkpoint = spec.checkpoint
    if checkpoint.url is not None and not is_remote(checkpoint.url):
        url = str(local_path("checkpoint.url", checkpoint.url))
        checkpoint = dataclasses.replace(checkpoint, url=url)
    if checkpoint.start_from is not None and not is_remote(checkpoint.start_from):
        start = str(local_path("checkpoint.start_from", checkpoint.start_from))
        checkpoint = dataclasses.replace(checkpoint, start_from=start)
    if checkpoint.chat_template is not None:
        template = str(local_path("checkpoint.chat_template", checkpoint.chat_template))
        ChatTemplate.read(template, where="checkpoint.chat_template").close()
        checkpoint = dataclasses.replace(checkpoint, chat_template=template)
    return dataclasses.replace(
        spec, data=with_absolute_paths(spec.data), output=output, checkpoint=checkpoint
    )


def _check_samples(spec: RunSpec, tokenizer: Tokenizer) -> None:
    """Whether samples can be drawn, which a run would otherwise learn at its first checkpoint."""
    for prompt in spec.loop.sample_prompts:
        length, more = len(tokenizer.encode(prompt)), spec.loop.sample_tokens
        if not length:
            raise ConfigError("loop.sample_prompts: one is empty; give at least one character")
        if length + more > spec.model.max_seq_len:
            raise ConfigError(
                f"loop.sample_prompts: {prompt[:40]!r} of {length} tokens + loop.sample_tokens "
                f"{more} = {length + more}, more than the model's {spec.model.max_seq_len} "
                "(data.seq_len); shorten one of them, or draw none: loop.sample_prompts=[]"
            )


def preflight(spec: RunSpec, *, cluster_gpus: int) -> Plan:
    """Check device, disk and earlier checkpoints of a resolved ``spec``.

    Raises:
        UserError: the first thing that would stop the run later.
    """
    folder = Path(spec.output) / spec.name
    if folder.exists() and not folder.is_dir():
        raise ResourceError(f"output: {folder} is a file; remove it, or give the run another name")
    data = known_data(interventions.read(folder).applied_to(spec))
    gpus = _gpus(spec, cluster_gpus)
    spec = dataclasses.replace(spec, engine=resolve_engine(spec.engine, gpu=bool(gpus)))
    parameters = sum(p.numel() for p in _built(spec, data.tokenizer).parameters())
    identity_at = partial(identity, spec, data, precision=spec.engine.precision)
    place = spec.checkpoint.place(folder)
    plan = Plan(
        spec=spec,
        folder=folder,
        corpora=corpora_of(data),
        gpus_per_worker=gpus,
        parameters=parameters,
        done_step=_done_step(place, identity_at),
    )
    if not plan.done_step:
        _check_moved(folder, place)
        plan = dataclasses.replace(plan, spec=_started(spec, data.tokenizer))
    if not plan.finished and not is_remote(place):
        need = 2 * checkpoint_bytes(parameters, averaged=spec.optim.ema is not None)
        _check_disk(folder if spec.checkpoint.url is None else Path(place), need)
    return plan


def _started(spec: RunSpec, tokenizer: Tokenizer) -> RunSpec:
    """With the weights that the run begins with, as they are now."""
    start = spec.checkpoint.start_from
    if start is None:
        return spec
    check_start(start, spec.model, tokenizer)
    pinned = dataclasses.replace(spec.checkpoint, start_from=locate_weights(start))
    return dataclasses.replace(spec, checkpoint=pinned)


def _gpus(spec: RunSpec, cluster_gpus: int) -> int:
    if spec.workers.device == "gpu" and cluster_gpus == 0:
        raise ConfigError("workers.device: got 'gpu', but the cluster has no GPU; use auto or cpu")
    return int(spec.workers.device == "gpu" or (spec.workers.device == "auto" and cluster_gpus > 0))


def _done_step(place: str, identity_at: Callable[..., dict[str, object]]) -> int:
    found = CheckpointStore(place).newest()
    if found is None:
        return 0
    name, manifest = found
    step = int(manifest.meta["step"])
    check_identity(manifest.meta["identity"], identity_at(step=step), Path(f"{place}/{name}"))
    return step


def config_before(folder: Path) -> dict[str, Any]:
    """What the run in ``folder`` was last started with; empty if that is not known."""
    try:
        found = yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_moved(folder: Path, place: str) -> None:
    """A run whose checkpoints lie elsewhere does not begin anew in its folder."""
    checkpoint = config_before(folder).get("checkpoint")
    url = checkpoint.get("url") if isinstance(checkpoint, dict) else None
    if not isinstance(checkpoint, dict) or not isinstance(url, str | None):
        return
    before = place_of(url, folder)
    if before != place and CheckpointStore(before).names():
        raise CheckpointError(
            f"checkpoint.url: {place} has no checkpoint of this run, whose checkpoints lie in "
            f"{before}: put checkpoint.url back (it was {url or 'null'}), copy them to the new "
            "place, or give the run another name to begin anew"
        )


def _check_disk(folder: Path, need: int) -> None:
    at = folder
    while not at.exists():
        at = at.parent
    if not at.is_dir():
        raise ResourceError(f"{folder}: {at} is a file; remove it, or have the run lie elsewhere")
    free = shutil.disk_usage(at).free
    if free < need:
        raise ResourceError(
            f"{folder}: two checkpoints (one kept, one being written) need about "
            f"{need / 1e6:.0f} MB and the disk has {free / 1e6:.0f} MB free; free some space or "
            "set output to another disk"
        )
