"""How many sequences a worker's memory holds at once: ``batch.micro_batch_tokens: auto``."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch
import torch.distributed as dist

from xtdist.config import ConfigError, ResourceError
from xtdist.train.footprint import Memory, Numbers, count, memory
from xtdist.train.spec import RunSpec
from xtdist.train.trace import Activations, Ids, UntraceableError, trace

USABLE = 0.8
"""Of what is free: the rest is for the allocator, whose blocks are never all full, and for what is
no tensor of a step."""


@dataclass(frozen=True)
class Need:
    """What micro-batches of ``spec`` need on one of ``world`` workers. ``one``, ``two``: sequences,
    of which more go on in a straight line. ``cuda``: on GPUs."""

    spec: RunSpec
    world: int
    cuda: bool
    numbers: Numbers
    one: Activations
    two: Activations

    @classmethod
    def of(cls, spec: RunSpec, ids: Ids, *, place: str, world: int, cuda: bool) -> Need:
        """Of ``spec``, whose precision is resolved; traced on ``place``.

        Raises:
            ConfigError: what the network keeps depends on numbers, so that nothing can be traced.
        """
        try:
            one, two = (trace(spec, ids, device=place, rows=rows) for rows in (1, 2))
        except UntraceableError as e:
            raise ConfigError(
                "batch.micro_batch_tokens: got 'auto', but the memory of this model depends on "
                f"what it reads (a mixture of experts, for example); give a number ({e})"
            ) from None
        return cls(spec, world, cuda, count(spec, ids), one, two)

    def memory(self, rows: int) -> Memory:
        """With micro-batches of ``rows`` sequences."""
        return memory(
            with_rows(self.spec, rows),
            self.numbers,
            self.one.towards(self.two, rows - 1),
            world=self.world,
            cuda=self.cuda,
        )

    def most_rows(self, free: float) -> int:
        """As fit into ``free`` bytes, at most those of one worker; 0: not even one."""
        low, high = 0, math.ceil(self.spec.global_batch / self.world)
        while low < high:
            middle = (low + high + 1) // 2
            if self.memory(middle).peak <= free:
                low = middle
            else:
                high = middle - 1
        return low


def with_rows(spec: RunSpec, rows: int) -> RunSpec:
    """``spec`` with micro-batches of ``rows`` sequences."""
    tokens = rows * spec.data.seq_len
    return dataclasses.replace(
        spec, batch=dataclasses.replace(spec.batch, micro_batch_tokens=tokens)
    )


def fit_micro_batch(spec: RunSpec, tokenizer: Ids, device: torch.device) -> RunSpec:
    """``spec`` with ``batch.micro_batch_tokens`` chosen, the same by all ranks; call it before
    anything is built.

    Raises:
        ResourceError: on all ranks, where some rank's memory does not hold one sequence.
    """
    if spec.batch.micro_batch_tokens != "auto":
        return spec
    cuda, world = device.type == "cuda", dist.get_world_size()
    need = Need.of(spec, tokenizer, place=device.type, world=world, cuda=cuda)
    free = torch.tensor(USABLE * free_bytes(device), dtype=torch.float64, device=device)
    dist.all_reduce(free, op=dist.ReduceOp.MIN)
    rows = need.most_rows(float(free))
    if rows < 1:
        least = need.memory(1)
        state = least.weights + least.gradients + least.optimizer
        raise ResourceError(
            f"batch.micro_batch_tokens: auto, but one sequence needs about {least.peak / 1e9:.2f} "
            f"GB ({state / 1e9:.2f} GB of them weights, gradients and optimizer) and a worker "
            f"may use {float(free) / 1e9:.2f} GB; take a higher engine.zero_stage, more workers, "
            "model.recompute, a shorter data.seq_len or a smaller model"
        )
    return with_rows(spec, rows)


def free_bytes(device: torch.device) -> float:
    """What this worker may still take of its device: on a CPU its share of what the machine, or the
    container, has left."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = float((group / "memory.max").read_text())
        free = min(free, limit - float((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or "max"
        pass
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
