"""What a run needs of a device's memory, traced and counted without any of it."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from xtdist.config import ConfigError, ResourceError
from xtdist.model import TransformerWrapper
from xtdist.objective import Objective, Prepared, build_objective
from xtdist.train.spec import RunSpec
from xtdist.train.spec.engine import EngineSpec

USABLE = 0.8
"""Of what is free: the rest is for what a backward pass needs besides, and for the allocator."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Footprint:
    """Bytes of one worker. ``state``: weights, gradients, optimizer. The others: what a forward
    pass keeps for its backward pass."""

    state: int
    fixed: int
    per_sequence: int

    def sequences(self, free: float) -> int:
        """How many fit into ``free`` bytes beside the state."""
        return int((free - self.state - self.fixed) // self.per_sequence)


class Ids(Protocol):
    """What an objective has to know of a tokenizer."""

    @property
    def mask_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...


def footprint(spec: RunSpec, tokenizer: Ids, *, device: str, world: int) -> Footprint:
    """Of ``spec``, whose precision is resolved, on one of ``world`` workers.

    Raises:
        ConfigError: what the network keeps depends on numbers, so that nothing can be traced.
    """
    with torch.device("meta"):
        objective = _objective(spec, tokenizer)
    try:
        one, two = (_kept(spec, tokenizer, device=device, rows=n) for n in (1, 2))
    except RuntimeError as e:
        raise ConfigError(
            "batch.micro_batch_tokens: got 'auto', but the memory of this model depends on what it "
            f"reads (a mixture of experts, for example); give a number ({str(e)[:80]}…)"
        ) from None
    parameters = sum(p.numel() for p in objective.parameters())
    state = state_bytes(parameters, spec.engine, world=world, on_cpu=device == "cpu")
    return Footprint(state=state, fixed=max(2 * one - two, 0), per_sequence=two - one)


def state_bytes(parameters: int, engine: EngineSpec, *, world: int, on_cpu: bool) -> int:
    """Bytes of weights, gradients and optimizer on one of ``world`` workers' devices: a copy of the
    weights in fp32 and AdamW's two averages are 12 a parameter. What is offloaded from a GPU does
    not count; on a CPU it lies in the same memory."""
    stage, size = engine.zero_stage, DTYPES[engine.precision].itemsize
    replicated = stage == 0 and engine.precision == "fp32"  # the weights are the fp32 copy
    weights, optimizer = size * parameters, (8 if replicated else 12) * parameters
    gradients = (4 if stage else size) * parameters
    if engine.offload_optimizer is not None and not on_cpu:
        optimizer = gradients = 0
    if engine.offload_parameters is not None and not on_cpu:
        weights = 0
    return (
        weights // (world if stage == 3 else 1)
        + gradients // (world if stage >= 2 else 1)
        + optimizer // (world if stage >= 1 else 1)
    )


def fit_micro_batch(spec: RunSpec, tokenizer: Ids, device: torch.device) -> RunSpec:
    """``spec`` with ``batch.micro_batch_tokens`` chosen, the same by all ranks; call it before
    anything is built.

    Raises:
        ResourceError: on all ranks, where some rank's memory does not hold one sequence.
    """
    if spec.batch.micro_batch_tokens != "auto":
        return spec
    need = footprint(spec, tokenizer, device=device.type, world=dist.get_world_size())
    free = torch.tensor(USABLE * free_bytes(device), dtype=torch.float64, device=device)
    dist.all_reduce(free, op=dist.ReduceOp.MIN)
    sequences = need.sequences(float(free))
    if sequences < 1:
        total = need.state + need.fixed + need.per_sequence
        raise ResourceError(
            f"batch.micro_batch_tokens: auto, but one sequence needs about {total / 1e9:.2f} GB "
            f"({need.state / 1e9:.2f} GB of them weights, gradients and optimizer) and a worker "
            f"may use {float(free) / 1e9:.2f} GB; take a higher engine.zero_stage, more workers, "
            "model.recompute, a shorter data.seq_len or a smaller model"
        )
    tokens = min(sequences, spec.global_batch) * spec.data.seq_len
    return dataclasses.replace(
        spec, batch=dataclasses.replace(spec.batch, micro_batch_tokens=tokens)
    )


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


def _kept(spec: RunSpec, tokenizer: Ids, *, device: str, rows: int) -> int:
    """Bytes that a forward pass of ``rows`` sequences keeps."""
    with traced(spec, tokenizer, device=device, rows=rows) as (net, prepared):
        return kept_bytes(net.losses, prepared, net.parameters())


@contextmanager
def traced(
    spec: RunSpec, ids: Ids, *, device: str, rows: int
) -> Iterator[tuple[Objective, Prepared]]:
    """The network of ``spec`` in the engine's precision and ``rows`` sequences for it, both without
    content."""
    with torch.device("meta"):
        objective = _objective(spec, ids)
    tokens = torch.zeros(rows, spec.data.seq_len + 1, dtype=torch.long)
    prepared = objective.prepare(tokens, seed=0, sample_ids=torch.arange(rows))
    mode = FakeTensorMode()
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with mode, _KnownNumbers(), torch.device(device):
            net = _cast(_objective(spec, ids), DTYPES[spec.engine.precision])
            yield net, _faked(prepared, mode, device)
    finally:
        log.setLevel(level)


def kept_bytes(
    forward: Callable[[Prepared], Any], prepared: Prepared, parameters: Iterable[nn.Parameter]
) -> int:
    """Bytes of the storages that autograd keeps after ``forward``, besides the parameters'."""
    known = {p.untyped_storage()._cdata for p in parameters}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            storages[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward(prepared)
    del out  # alive until here, and all that it keeps with it
    return sum(storage.nbytes() for storage in storages.values())


class _KnownNumbers(TorchDispatchMode):
    """Answers what depends on numbers that are not there: every place counts, numbers are 0."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.nonzero.default:
            (x,) = args
            return torch.empty(x.numel(), x.ndim, dtype=torch.long, device=x.device)
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.0 if args[0].dtype.is_floating_point else 0
        return func(*args, **(kwargs or {}))


def _objective(spec: RunSpec, tokenizer: Ids) -> Objective:
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
