"""A training pass of a network without content: what it keeps, and the most that there ever is."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from xtdist.config import ConfigError
from xtdist.model import TransformerWrapper
from xtdist.objective import Objective, Prepared, build_objective
from xtdist.train.live import LiveBytes
from xtdist.train.spec import RunSpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class UntraceableError(ConfigError):
    """What the network keeps depends on what it reads."""


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch. ``moments``: the most that there is beside weights and whole
    gradients, and how many numbers have their gradient then."""

    moments: tuple[tuple[int, int], ...]

    @property
    def peak(self) -> int:
        """The most in either pass."""
        return max(live for live, _ in self.moments)

    def towards(self, other: Activations, times: int) -> Activations:
        """``times`` the way from here to ``other``, and as far as that leads."""
        pairs = zip(self.moments, other.moments, strict=True)
        return Activations(tuple((a + times * (b - a), n) for (a, n), (b, _) in pairs))


class Ids(Protocol):
    """What an objective has to know of a tokenizer."""

    @property
    def mask_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...


def trace(spec: RunSpec, ids: Ids, *, device: str, rows: int, masked: float = 1.0) -> Activations:
    """One micro-batch of ``rows`` sequences through ``spec``, whose precision is resolved.
    ``masked``: of masked prediction, the share of tokens that are.

    Raises:
        UntraceableError: see there.
    """
    moments: list[tuple[int, int]] = []
    try:
        with traced(spec, ids, device=device, rows=rows, masked=masked) as (net, prepared):
            live = LiveBytes(*net.parameters(), *net.buffers())
            fixed, arrived = live.now, 0

            def come(parameter: Tensor) -> None:
                nonlocal arrived
                moments.append((live.peak - fixed, arrived))
                arrived += parameter.numel()
                parameter.grad = None
                live.reset()

            for p in net.parameters():
                if p.requires_grad:
                    p.register_post_accumulate_grad_hook(come)
            with live:
                net.losses(prepared).sum.backward()
            moments.append((live.peak - fixed, arrived))
    except RuntimeError as e:
        raise UntraceableError(
            f"model: what it needs of memory depends on what it reads ({str(e)[:80]}…)"
        ) from None
    shared = spec.engine.sequence_parallel
    return Activations(tuple((most // shared, n) for most, n in moments))


@contextmanager
def traced(
    spec: RunSpec, ids: Ids, *, device: str, rows: int, masked: float
) -> Iterator[tuple[Objective, Prepared]]:
    """The network of ``spec`` in the engine's precision and ``rows`` sequences for it, both without
    content. ``masked``: see ``trace``."""
    with torch.device("meta"):
        objective = bare_objective(spec, ids)
    tokens = torch.zeros(rows, spec.data.seq_len + 1, dtype=torch.long)
    prepared = objective.prepare(tokens, seed=0, sample_ids=torch.arange(rows))
    mode = FakeTensorMode()
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with mode, _KnownNumbers(masked), torch.device(device):
            net = _cast(bare_objective(spec, ids), DTYPES[spec.engine.precision])
            yield net, _faked(prepared, mode, device)
    finally:
        log.setLevel(level)


class _KnownNumbers(TorchDispatchMode):
    """Answers what depends on numbers that are not there: the share ``masked`` of places counts,
    numbers are 0."""

    def __init__(self, masked: float) -> None:
        super().__init__()
        self._masked = masked

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.nonzero.default:
            (x,) = args
            places = math.ceil(self._masked * x.numel())
            return torch.empty(places, x.ndim, dtype=torch.long, device=x.device)
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.0 if args[0].dtype.is_floating_point else 0
        return func(*args, **(kwargs or {}))


def bare_objective(spec: RunSpec, tokenizer: Ids) -> Objective:
    """The network of ``spec`` in its objective; where torch makes tensors by default."""
    return build_objective(
        spec.objective,
        TransformerWrapper.from_config(spec.model),
        mask_id=tokenizer.mask_id,
        pad_id=tokenizer.pad_id,
    )


def _cast(net: Objective, dtype: torch.dtype) -> Objective:
    """``net`` in ``dtype``, as the engine has it; ``Module.to`` can't swap fake parameters."""
    done: dict[int, nn.Parameter] = {}
    for module in net.modules():
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(p) not in done:
                done[id(p)] = nn.Parameter(p.detach().to(dtype), requires_grad=p.requires_grad)
            setattr(module, name, done[id(p)])
        for name, b in module.named_buffers(recurse=False):
            if b.is_floating_point():
                setattr(module, name, b.to(dtype))
    return net


def _faked(prepared: Prepared, mode: FakeTensorMode, device: str) -> Prepared:
    tensors = {
        f.name: mode.from_tensor(value).to(device)
        for f in dataclasses.fields(prepared)
        if isinstance(value := getattr(prepared, f.name), Tensor)
    }
    return dataclasses.replace(prepared, **tensors)
