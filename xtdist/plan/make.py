"""The plan of a run: what it needs, whether it fits, and the smallest change that makes it fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from xtdist.model import TransformerWrapper
from xtdist.nn.feedforward.moe import MoEConfig
from xtdist.objective import build_objective
from xtdist.plan.devices import Device
from xtdist.plan.flops import read_flops_per_token
from xtdist.plan.parameters import Parameters, count_parameters
from xtdist.plan.variants import Variant, chosen_variant, cures, offloads, recomputes, with_variant
from xtdist.train.footprint import Memory, Numbers, count, memory
from xtdist.train.hardware import resolve_precision
from xtdist.train.masked import most_masked
from xtdist.train.meters.flops import flops_per_token
from xtdist.train.micro_batch import USABLE, Need, with_rows
from xtdist.train.spec import RunSpec
from xtdist.train.state import checkpoint_bytes
from xtdist.train.trace import DTYPES, Activations, Ids, trace


@dataclass(frozen=True)
class Data:
    """What is known of the training data: counts."""

    tokens: int
    documents: int

    @property
    def mean_length(self) -> float:
        """Of a document."""
        return self.tokens / max(self.documents, 1)


@dataclass(frozen=True)
class Row:
    """One way to run it. ``fits``: into the device's memory."""

    variant: Variant
    memory: Memory
    fits: bool
    chosen: bool = False


@dataclass(frozen=True)
class RunPlan:
    """What a run needs.

    Attributes:
        spec: with its precision and micro-batch settled.
        device: of each worker.
        rows: stages, offloads and recomputation, one line each; the chosen one among them.
        cure: the smallest change after which it fits; None: it does, or nothing tried does.
        tokens: of all steps.
        flops_per_token: of training, as perf/mfu counts them; None: not known.
        read_flops_per_token: of these, those for the keys that causality, windows and documents
            leave to be read.
        data_tokens: in the training data; None: not known.
        notes: what was assumed.
    """

    spec: RunSpec
    device: Device
    parameters: Parameters
    rows: tuple[Row, ...]
    cure: Row | None
    tokens: int
    flops_per_token: float | None
    read_flops_per_token: float | None
    checkpoint_bytes: int
    data_tokens: int | None = None
    mfu: float = 0.4
    price_per_hour: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> Row:
        return next(row for row in self.rows if row.chosen)

    @property
    def world(self) -> int:
        return self.spec.workers.count

    @property
    def kept(self) -> int:
        """Checkpoints that lie there at once, one that is being written included."""
        rule, saves = self.spec.checkpoint, self.spec.loop.steps // self.spec.checkpoint.every + 1
        for_ever = self.spec.loop.steps // rule.keep_every if rule.keep_every else 0
        return min(rule.keep + rule.keep_best + for_ever, saves) + 1

    @property
    def flops(self) -> float | None:
        """Of all steps."""
        return None if self.flops_per_token is None else self.flops_per_token * self.tokens

    @property
    def seconds(self) -> float | None:
        """At ``mfu``; None where the peak or the operations are not known."""
        if self.flops is None or self.device.tflops is None:
            return None
        return self.flops / (self.world * self.device.tflops * 1e12 * self.mfu)

    @property
    def cost(self) -> float | None:
        """In the currency of ``price_per_hour``."""
        if self.seconds is None or self.price_per_hour is None:
            return None
        return self.seconds / 3600 * self.world * self.price_per_hour

    def tree(self) -> dict[str, Any]:
        """Everything, for JSON."""
        split = self.spec.split(self.world)
        return {
            "parameters": dataclasses.asdict(self.parameters),
            "device": dataclasses.asdict(self.device),
            "workers": self.world,
            "tokens_per_step": self.spec.batch.tokens_per_step,
            "micro_batch_sequences": split.micro_batch,
            "accumulation": split.accumulation,
            "steps": self.spec.loop.steps,
            "tokens": self.tokens,
            "epochs": self.tokens / self.data_tokens if self.data_tokens else None,
            "flops_per_token": self.flops_per_token,
            "read_flops_per_token": self.read_flops_per_token,
            "flops": self.flops,
            "mfu": self.mfu,
            "seconds": self.seconds,
            "cost": self.cost,
            "checkpoint_bytes": self.checkpoint_bytes,
            "checkpoints_bytes": self.checkpoint_bytes * self.kept,
            "memory": [_row_tree(row) for row in self.rows],
            "fits": self.chosen.fits,
            "cure": None if self.cure is None else _row_tree(self.cure),
            "notes": list(self.notes),
        }


def _row_tree(row: Row) -> dict[str, Any]:
    return {
        "change": row.variant.overrides,
        **dataclasses.asdict(row.memory),
        "fits": row.fits,
        "chosen": row.chosen,
    }


def make_plan(
    spec: RunSpec,
    ids: Ids,
    device: Device,
    *,
    data: Data | None = None,
    mfu: float = 0.4,
    price_per_hour: float | None = None,
    alone: bool = False,
) -> RunPlan:
    """Of a ``spec`` whose vocabulary is known, on ``spec.workers.count`` workers.

    Args:
        mfu: share of the device's peak that is reached.
        price_per_hour: of one device.
        alone: what is chosen, and no other ways to run it, which takes a third of the time.

    Raises:
        ConfigError: it can't be built, or not with this precision on this device.
    """
    precision = resolve_precision(spec.engine.precision, gpu=device.cuda)
    spec = dataclasses.replace(spec, engine=dataclasses.replace(spec.engine, precision=precision))
    bench = _Bench(spec, ids, device)
    notes = list(bench.notes)
    spec = bench.spec
    base = chosen_variant(spec)
    row = dataclasses.replace(bench.row(base), chosen=True)
    others = [] if alone else [bench.row(v) for v in _others(spec, device, base)]
    cure = None
    if not row.fits and not alone:
        cure = next((r for r in map(bench.row, cures(spec, device)) if r.fits), None)
    return RunPlan(
        spec=spec,
        device=device,
        parameters=bench.parameters,
        rows=tuple(sorted((row, *others), key=lambda r: r.variant.order)),
        cure=cure,
        tokens=_tokens(spec),
        flops_per_token=flops_per_token(spec.model, spec.data.seq_len),
        read_flops_per_token=read_flops_per_token(spec, data.mean_length if data else None),
        checkpoint_bytes=checkpoint_bytes(
            bench.parameters.total,
            averaged=spec.optim.ema is not None,
            size=DTYPES[precision].itemsize,
            muon=bench.numbers.muon,
        ),
        data_tokens=data.tokens if data else None,
        mfu=mfu,
        price_per_hour=price_per_hour,
        notes=tuple(notes),
    )


def _others(spec: RunSpec, device: Device, base: Variant) -> Iterator[Variant]:
    seen = {base.order}
    for variant in (*offloads(spec, cuda=device.cuda), *recomputes(spec)):
        if variant.order not in seen:
            seen.add(variant.order)
            yield variant


@dataclass
class _Bench:
    """Variants of one run, each traced once."""

    spec: RunSpec
    ids: Ids
    device: Device
    notes: list[str] = field(default_factory=list)
    _traces: dict[Any, Activations] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.device.cuda and not torch.cuda.is_available():
            self.notes.append(
                f"modelled, not measured on {self.device.name}: memory (passes as on a CPU), time "
                "and cost (peak x MFU)"
            )
        if self.spec.batch.micro_batch_tokens == "auto":
            self.spec = self._filled(self.spec)
        if isinstance(self.spec.model.feedforward, MoEConfig):
            self.notes.append(
                "activations are those of a dense model as wide as the experts of a token: what a "
                "mixture keeps depends on what it reads"
            )
        if self.spec.engine.sequence_parallel > 1:
            self.notes.append("activations: a share of those of whole sequences")

    @property
    def _place(self) -> str:
        """Backward passes of a GPU can only be traced where torch has CUDA."""
        return "cuda" if self.device.cuda and torch.cuda.is_available() else "cpu"

    @cached_property
    def parameters(self) -> Parameters:
        with torch.device("meta"):
            objective = build_objective(
                self.spec.objective,
                TransformerWrapper.from_config(self.spec.model),
                mask_id=self.ids.mask_id,
                pad_id=self.ids.pad_id,
            )
        return count_parameters(objective, kinds=self.spec.model.kinds)

    @cached_property
    def numbers(self) -> Numbers:
        return count(self.spec, self.ids)

    def row(self, variant: Variant) -> Row:
        spec = with_variant(self.spec, variant)
        found = memory(
            spec,
            self.numbers,
            self._activations(spec),
            world=spec.workers.count,
            cuda=self.device.cuda,
        )
        return Row(variant, found, found.peak <= self.device.bytes)

    def _activations(self, spec: RunSpec) -> Activations:
        rows = spec.split(spec.workers.count).micro_batch
        masked = most_masked(spec, rows=rows, world=spec.workers.count)
        key = (spec.model, rows, masked)
        if key not in self._traces:
            self._traces[key] = trace(
                _dense(spec), self.ids, device=self._place, rows=rows, masked=masked
            )
        return self._traces[key]

    def _filled(self, spec: RunSpec) -> RunSpec:
        """With the micro-batch that ``auto`` comes to on an empty device."""
        need = Need.of(
            _dense(spec),
            self.ids,
            place=self._place,
            world=spec.workers.count,
            cuda=self.device.cuda,
        )
        spec = with_rows(spec, max(need.most_rows(USABLE * self.device.bytes), 1))
        tokens = spec.batch.micro_batch_tokens
        self.notes.append(f"batch.micro_batch_tokens: auto comes to {tokens} on an empty device")
        return spec


def _dense(spec: RunSpec) -> RunSpec:
    """A mixture of experts as a layer that is as wide as those that a token goes through."""
    mixture = spec.model.feedforward
    if not isinstance(mixture, MoEConfig):
        return spec
    wide = mixture.expert.mult * (mixture.top_k + mixture.shared_experts)
    expert = dataclasses.replace(mixture.expert, mult=wide)
    model = dataclasses.replace(spec.model, feedforward=expert)
    return dataclasses.replace(spec, model=model)


def _tokens(spec: RunSpec) -> int:
    """Of all steps, the first ones with what the warm-up gives them."""
    total, before = 0, 0
    for stage in spec.batch.warmup:
        until = min(stage.until_step, spec.loop.steps)
        total += max(until - before, 0) * stage.tokens_per_step
        before = max(before, until)
    return total + (spec.loop.steps - before) * spec.batch.tokens_per_step
