"""Other ways to run the same training: ZeRO stages, offloading, recomputation, more workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from xtdist.model.config import RecomputeConfig
from xtdist.plan.devices import Device
from xtdist.train.spec import RunSpec
from xtdist.train.spec.engine import CpuOffload

Recompute = Literal["none", "feedforward", "all"]
_RECOMPUTE: dict[Recompute, RecomputeConfig | None] = {
    "none": None,
    "feedforward": RecomputeConfig(only="feedforward"),
    "all": RecomputeConfig(),
}
STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
_MOST_WORKERS = 4096


@dataclass(frozen=True)
class Variant:
    """What is different. ``recompute`` None: as in the config, which has a pattern of its own."""

    stage: Literal[0, 1, 2, 3]
    offload: int  # 0 nothing, 1 the optimizer, 2 the weights too
    recompute: Recompute | None
    workers: int
    micro_batch_tokens: int

    @property
    def order(self) -> tuple[Any, ...]:
        names: list[Recompute | None] = [None, "none", "feedforward", "all"]
        return (self.stage, self.offload, names.index(self.recompute), self.workers)

    @property
    def overrides(self) -> dict[str, Any]:
        """As on a command line."""
        found: dict[str, Any] = {"engine.zero_stage": self.stage}
        if self.offload:
            found["engine.offload_optimizer.kind"] = "cpu"
        if self.offload > 1:
            found["engine.offload_parameters.kind"] = "cpu"
        if self.recompute == "none":
            found["model.recompute"] = None
        elif self.recompute is not None:
            found["model.recompute.only"] = self.recompute
        found["workers.count"] = self.workers
        found["batch.micro_batch_tokens"] = self.micro_batch_tokens
        return found


def chosen_variant(spec: RunSpec) -> Variant:
    """What the config says."""
    engine = spec.engine
    offload = 2 if engine.offload_parameters else 1 if engine.offload_optimizer else 0
    names = [name for name, config in _RECOMPUTE.items() if config == spec.model.recompute]
    tokens = spec.batch.micro_batch_tokens
    assert tokens != "auto"
    return Variant(
        engine.zero_stage, offload, names[0] if names else None, spec.workers.count, tokens
    )


def with_variant(spec: RunSpec, variant: Variant) -> RunSpec:
    """``spec`` changed to be it; unchanged where it is."""
    now = chosen_variant(spec)
    if variant == now:
        return spec
    engine = dataclasses.replace(spec.engine, zero_stage=variant.stage)
    if variant.offload != now.offload:
        engine = dataclasses.replace(
            engine,
            offload_optimizer=CpuOffload() if variant.offload else None,
            offload_parameters=CpuOffload() if variant.offload > 1 else None,
        )
    if variant.stage < 3:
        engine = dataclasses.replace(engine, hpz_partition_size=1)
    model = spec.model
    if variant.recompute != now.recompute and variant.recompute is not None:
        model = dataclasses.replace(model, recompute=_RECOMPUTE[variant.recompute])
    workers = dataclasses.replace(spec.workers, count=variant.workers)
    batch = dataclasses.replace(spec.batch, micro_batch_tokens=variant.micro_batch_tokens)
    return dataclasses.replace(spec, engine=engine, model=model, workers=workers, batch=batch)


def offloads(spec: RunSpec, *, cuda: bool) -> Iterator[Variant]:
    """All stages, on a GPU also with what they can offload."""
    base = chosen_variant(spec)
    for stage in STAGES:
        for offload in range(3):
            if offload and (not cuda or stage == 0 or (offload == 2 and stage < 3)):
                continue
            if offload and spec.optim.kind == "muon" and stage == 0:
                continue
            yield dataclasses.replace(base, stage=stage, offload=offload)


def recomputes(spec: RunSpec) -> Iterator[Variant]:
    """The chosen stage with all of recomputation's choices."""
    base = chosen_variant(spec)
    for name in _RECOMPUTE:
        yield dataclasses.replace(base, recompute=name)


def cures(spec: RunSpec, device: Device) -> Iterator[Variant]:
    """Changes from the smallest to the largest: first single ones, which move no result and then
    cost time; then all of these together with more workers."""
    base = chosen_variant(spec)
    least = spec.data.seq_len
    small = base
    while small.micro_batch_tokens > least:
        half = max(small.micro_batch_tokens // 2 // least, 1) * least
        small = dataclasses.replace(small, micro_batch_tokens=half)
        yield small
    stages = [s for s in STAGES[base.stage + 1 :] if spec.workers.count > 1]
    more: list[Recompute] = ["feedforward", "all"] if base.recompute != "all" else []
    steps: list[dict[str, Any]] = [{"recompute": name} for name in more]
    steps += [{"stage": stage} for stage in stages]
    if device.cuda and base.offload == 0:
        steps.append({"offload": 1, "stage": max(base.stage, 1)})
    for step in steps:
        yield dataclasses.replace(base, **step)
        yield dataclasses.replace(small, **step)
    tight = dataclasses.replace(small, recompute="all", stage=3)
    yield tight
    workers = base.workers
    while (workers := workers * 2) <= min(_MOST_WORKERS, spec.global_batch):
        yield dataclasses.replace(base, workers=workers)
        yield dataclasses.replace(tight, workers=workers)
    if device.cuda:
        yield dataclasses.replace(tight, offload=2)
        most = max(base.workers, workers // 2)
        yield dataclasses.replace(tight, offload=2, workers=most)
