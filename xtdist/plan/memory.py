"""Bytes of one worker's device in a training step: what stays, and the most there ever is.

What a forward and a backward pass need beside weights and gradients is traced with tensors that
have shapes and no content. What the engine adds is written down here, as DeepSpeed 0.19 was
measured to do it on CPUs (``tests/plan/test_memory.py`` measures again).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from xtdist.config import ConfigError
from xtdist.optim.config import MuonConfig
from xtdist.plan.parameters import Parameters
from xtdist.train.deepspeed import BUCKETS, MAX_LIVE
from xtdist.train.footprint import DTYPES, Ids, traced
from xtdist.train.live import LiveBytes
from xtdist.train.spec import RunSpec


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch. ``kept``: for the backward pass; ``peak``: the most that there is
    in either pass, beside weights and whole gradients. ``guessed``: not traced, but scaled."""

    kept: int
    peak: int
    guessed: bool = False


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


def trace(spec: RunSpec, ids: Ids, *, device: str, rows: int) -> Activations:
    """One micro-batch of ``rows`` sequences through ``spec``, whose precision is resolved.

    Raises:
        ConfigError: the network can't be traced.
    """
    try:
        with traced(spec, ids, device=device, rows=rows) as (net, prepared):
            for p in net.parameters():
                p.register_post_accumulate_grad_hook(_drop)
            live = LiveBytes(*net.parameters(), *net.buffers())
            fixed = live.now
            with live:
                out = net.losses(prepared)
                kept = live.now - fixed
                out.sum.backward()
    except RuntimeError as e:
        raise ConfigError(
            f"model: what it needs of memory depends on what it reads ({str(e)[:80]}…)"
        ) from None
    return Activations(kept, live.peak - fixed)


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def memory(
    spec: RunSpec, parameters: Parameters, activations: Activations, *, world: int, cuda: bool
) -> Memory:
    """Of one of ``world`` workers that run ``spec``, whose precision is resolved."""
    engine, n = spec.engine, parameters.total
    stage, size = engine.zero_stage, DTYPES[engine.precision].itemsize
    part = world if stage else 1
    plain = stage == 0 and size == 4  # no engine around the optimizer: the weights are the master
    bucket = _bucket(spec, cuda=cuda)
    sent = min(bucket, n) * size if stage else 0

    weights = size * n // (world if stage == 3 else 1)
    gathered = size * min(n, MAX_LIVE) if stage == 3 and world > 1 else 0
    master = 0 if plain else 4 * n
    state = (master + _state_bytes(spec, parameters)) // part
    kept = 0 if cuda or stage not in (1, 2) else size * n  # DeepSpeed keeps what it flattened
    if stage == 1 and size == 2:
        kept += size * n
    grads = _gradients(stage, size=size, n=n, part=part, again=_accumulates(spec, world))
    offloaded = (0, 0)
    if cuda and engine.offload_optimizer is not None:
        offloaded = (state, grads.held)
        state, grads = 0, dataclasses.replace(grads, held=0)
    if cuda and engine.offload_parameters is not None:
        offloaded = (offloaded[0] + weights, offloaded[1])
        weights = 0

    stays = weights + state + kept + (grads.held + sent if stage == 3 else 0)
    passes = stays + gathered + grads.during + (0 if stage == 3 else sent) + activations.peak
    update = stays + (0 if offloaded[0] else grads.update)
    return Memory(
        weights=weights + gathered,
        gradients=max(grads.during, grads.held),
        optimizer=state,
        activations=activations.peak,
        buffers=kept + sent,
        peak=max(passes, update, stays + grads.end),
        host=sum(offloaded),
    )


@dataclass(frozen=True)
class _Gradients:
    """``held``: at stage 3, all the time; ``during`` a backward pass, with those of the passes
    before; ``end``: when they are reduced; ``update``: with what AdamW computes in."""

    held: int
    during: int
    end: int
    update: int


def _gradients(stage: int, *, size: int, n: int, part: int, again: bool) -> _Gradients:
    if stage == 0:
        more = 0 if size == 4 else 4 * n
        return _Gradients(0, size * n, size * n, size * n + more)
    mine = 4 * n // part
    update = mine + 4 * n // part
    if stage == 1:
        end = mine + (2 * size * n if size == 2 else size * n)
        return _Gradients(0, size * n, end, update)
    if stage == 2:
        return _Gradients(0, mine * (2 if again and size == 4 else 1), mine, update)
    return _Gradients(mine, 0, 0, mine)


def _accumulates(spec: RunSpec, world: int) -> bool:
    return spec.split(world).accumulation > 1


def _state_bytes(spec: RunSpec, parameters: Parameters) -> int:
    """Of averages: AdamW has two, Muon one of its matrices; and EMA's."""
    n = parameters.total
    each = 8 * n
    if isinstance(spec.optim, MuonConfig):
        matrices = parameters.parts["attention"] + parameters.parts["feed-forward"]
        each -= 4 * matrices
    return each + (4 * n if spec.optim.ema is not None else 0)


def _bucket(spec: RunSpec, *, cuda: bool) -> int:
    """Numbers that are reduced at once; two of them where one is sent while another fills."""
    given = spec.engine.reduce_bucket
    count = BUCKETS["cuda" if cuda else "cpu"] if given == "auto" else given
    overlaps = cuda if spec.engine.overlap_comm == "auto" else spec.engine.overlap_comm
    return count * (2 if overlaps else 1)
