"""Bytes of one worker's device in a training step: what stays, and the most there ever is.

What a forward and a backward pass need beside weights and gradients is traced (``trace``). What the
engine adds is written down here, as DeepSpeed 0.19 was measured to do it on CPUs
(``tests/plan/test_plan_memory.py`` measures again). Where offloaded bytes lie is known from its
source alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xtdist.model import muon_parameters
from xtdist.optim import param_groups
from xtdist.train.deepspeed import BUCKETS, MAX_LIVE
from xtdist.train.spec import RunSpec
from xtdist.train.trace import DTYPES, Activations, Ids, bare_objective

MUON_WORK = 14
"""Bytes for each number of the matrix that Muon is making orthogonal."""


@dataclass(frozen=True)
class Numbers:
    """How many a model has. ``trained``: that an optimizer changes. ``largest``: in one tensor.
    ``muon``: that Muon changes; ``matrix``: in the largest tensor of these."""

    total: int
    trained: int
    largest: int
    muon: int = 0
    matrix: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker's device.

    Attributes:
        weights: in the precision of the engine, this worker's part; at stage 3 what is gathered.
        gradients: at the end of a backward pass.
        optimizer: fp32 weights, AdamW's or Muon's state, averages.
        activations: the most of a forward or backward pass.
        buffers: what is sent at once, copies that the engine keeps.
        peak: the most at any moment of a step; less than the sum of the others where these are not
            all there at once.
        host: bytes of this worker in the host's memory, where something is offloaded.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    peak: int
    host: int = 0


def count(spec: RunSpec, ids: Ids) -> Numbers:
    """Of the model of ``spec``.

    Raises:
        ConfigError: its optimizer has nothing to do.
    """
    with torch.device("meta"):
        objective = bare_objective(spec, ids)
    sizes = [p.numel() for p in objective.parameters()]
    groups = param_groups(objective, spec.optim, muon_parameters(objective))
    muon = [p.numel() for g in groups if g["algorithm"] == "muon" for p in g["params"]]
    return Numbers(
        total=sum(sizes),
        trained=sum(group["elements"] for group in groups),
        largest=max(sizes),
        muon=sum(muon),
        matrix=max(muon, default=0),
    )


def memory(
    spec: RunSpec, numbers: Numbers, activations: Activations, *, world: int, cuda: bool
) -> Memory:
    """Of one of ``world`` workers that run ``spec``, whose precision is resolved."""
    engine, n = spec.engine, numbers.total
    cut = _Cut.of(spec, numbers, world=world, cuda=cuda)
    stage, size = cut.stage, cut.size
    each = 4 if stage == 1 and cut.offload else size
    sent = min(cut.bucket * _buckets(spec, cuda=cuda), n) * each if stage else 0
    weights = size * n // (world if stage == 3 else 1)
    fetched = stage == 3 and (world > 1 or (cuda and engine.offload_parameters is not None))
    gathered = size * min(n, MAX_LIVE) if fetched else 0
    state, grads = _state(spec, cut), _gradients(cut)
    kept = 0 if cuda or stage not in (1, 2) else size * n  # DeepSpeed keeps what it flattened
    if stage == 1 and size == 2 and not cut.offload:
        kept += size * n
    if cut.offload and stage < 3:
        kept += size * numbers.largest  # through which gradients go to the host
    here, away = state + grads.held, 0
    if cut.offload:
        away = here + _beside(cut)
        here = 0
        if engine.offload_parameters is not None:
            away, weights = away + weights, 0
        if not cuda:  # the host's memory is the device's
            here, away = away, 0

    stays = here + weights + kept + (sent if stage == 3 else 0)
    passes = gathered + (0 if stage == 3 else sent) + grads.with_passes(activations)
    return Memory(
        weights=weights + gathered,
        gradients=grads.in_the_end(numbers) or (0 if away else grads.held),
        optimizer=here - grads.held if here else 0,
        activations=activations.peak,
        buffers=kept + sent,
        peak=stays + max(passes, grads.end, grads.update, grads.muon),
        host=away,
    )


@dataclass(frozen=True)
class _Cut:
    """What the engine does with ``numbers``. ``part``: of how many workers each has one; ``again``:
    gradients are accumulated; ``flat``: in one fp32 tensor, with which AdamW computes."""

    stage: int
    size: int
    part: int
    again: bool
    flat: bool
    offload: bool
    bucket: int
    numbers: Numbers

    @classmethod
    def of(cls, spec: RunSpec, numbers: Numbers, *, world: int, cuda: bool) -> _Cut:
        engine, bucket = spec.engine, spec.engine.reduce_bucket
        return cls(
            stage=engine.zero_stage,
            size=DTYPES[engine.precision].itemsize,
            part=world if engine.zero_stage else 1,
            again=spec.split(world).accumulation > 1,
            flat=engine.precision == "bf16" and engine.zero_stage == 2,
            offload=engine.offload_optimizer is not None,
            bucket=BUCKETS["cuda" if cuda else "cpu"] if bucket == "auto" else bucket,
            numbers=numbers,
        )

    @property
    def mine(self) -> int:
        """fp32 numbers of all that is trained, this worker's part."""
        return 4 * self.numbers.trained // self.part


@dataclass(frozen=True)
class _Gradients:
    """``held``: at stage 3, all the time. During a backward pass: ``fixed`` bytes of the passes
    before, ``each`` for each number whose gradient has come, ``late`` as soon as more than
    ``bucket`` of them have. ``end``: when they are reduced. ``update``: with what AdamW computes
    in; ``muon``: with what Muon does."""

    fixed: int = 0
    each: float = 0.0
    late: int = 0
    bucket: int = 0
    held: int = 0
    end: int = 0
    update: int = 0
    muon: int = 0

    def in_the_end(self, numbers: Numbers) -> int:
        """Of a pass."""
        return self.fixed + int(self.each * numbers.trained) + self.late

    def with_passes(self, activations: Activations) -> int:
        """The most of both in a pass."""
        return self.fixed + max(
            int(live + self.each * n + self.late * (n > self.bucket))
            for live, n in activations.moments
        )


def _gradients(cut: _Cut) -> _Gradients:
    t, size, mine, half = cut.numbers.trained, cut.size, cut.mine, cut.size == 2
    muon = 4 * cut.numbers.muon // cut.part
    work = 2 * muon + MUON_WORK * cut.numbers.matrix if muon else 0
    whole = size * t
    if cut.stage == 0:
        fixed, each = (whole, 0.0) if cut.again else (0, float(size))
        update = whole + (4 * t if half else 0)
        work = MUON_WORK * cut.numbers.matrix if muon else 0  # matrix by matrix
        end = 2 * whole  # they are sent in a copy of all
        return _Gradients(fixed, each, end=end, update=update, muon=whole + work)
    if cut.stage == 3:
        copied = 0 if cut.offload else muon  # offloaded, they have a place of their own
        return _Gradients(held=mine, update=0 if cut.offload else mine, muon=work + copied)
    if cut.offload and cut.stage == 1:  # they go to the host when the last pass is over
        fixed, each = (4 * t, 0.0) if cut.again else (0, 4.0)
        return _Gradients(fixed, each, update=fixed, muon=fixed + work)
    if cut.offload:
        fixed = mine if half and cut.again else 0
        late = mine if half and not cut.again else 0
        each = 0.0 if half else size / cut.part
        end = fixed + late
        return _Gradients(
            fixed, each, late=late, bucket=cut.bucket, end=end, update=end, muon=end + work
        )
    if cut.stage == 1:
        fixed, each = (whole, 0.0) if cut.again or half else (0, float(size))
        end = mine + (2 if half else 1) * whole
        before = whole if half else mine + muon
        return _Gradients(fixed, each, end=end, update=2 * mine, muon=before + work)
    fixed = mine if cut.again else 0
    late = 0 if cut.again and half else mine  # one buffer for all
    before = mine if half else mine + muon
    update = mine if cut.flat else 2 * mine
    return _Gradients(
        fixed, late=late, bucket=cut.bucket, end=mine, update=update, muon=before + work
    )


def _beside(cut: _Cut) -> int:
    """Bytes in the host's memory that offloading needs more than the same without it."""
    if cut.stage == 3:
        return cut.mine
    whole = cut.size * cut.numbers.trained // cut.part
    accumulated = whole if cut.again and cut.size == 4 and cut.stage == 2 else 0
    return cut.mine + whole + accumulated + cut.size * cut.numbers.largest


def _state(spec: RunSpec, cut: _Cut) -> int:
    """fp32 weights, where the engine has them beside; averages: AdamW has two, Muon one; EMA's."""
    plain = cut.stage == 0 and cut.size == 4  # no engine around the optimizer
    each = 8 + (0 if plain else 4) + (4 if spec.optim.ema is not None else 0)
    return (each * cut.numbers.trained - 4 * cut.numbers.muon) // cut.part


def _buckets(spec: RunSpec, *, cuda: bool) -> int:
    """Two where one is sent while another fills."""
    overlaps = cuda if spec.engine.overlap_comm == "auto" else spec.engine.overlap_comm
    return 2 if overlaps else 1
