"""The live optimizer of DeepSpeed, whatever its kind, as flat tensors of named pieces.

DeepSpeed 0.19 has one optimizer class per combination of stage and precision:

    stage 0, fp32        the torch optimizer over the module's parameters
    stage 0, bf16/fp16   FP16_UnfusedOptimizer (a master per parameter), or FP16_Optimizer for its
                         own fused Adam (one per group); every rank holds all of it
    stage 1, bf16        BF16_Optimizer, when gradients are accumulated in fp32
    stages 1 and 2       DeepSpeedZeroOptimizer: of each group a rank's part, which cuts parameters
    stage 3              DeepSpeedZeroOptimizer_Stage3: a part of every parameter, in sub-groups,
                         which may lie on NVMe
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from xtdist.config import CheckpointError
from xtdist.train.state.pieces import Piece
from xtdist.train.state.shards import MASTER


@dataclass(frozen=True, eq=False, kw_only=True)
class Flat:
    """A master of the optimizer on this rank. Use what reads or writes it inside ``swapped()``.

    Attributes:
        pieces: the parts of parameters in it; what lies between or behind is padding.
        numel: elements, padding included.
        master: the tensor that the optimizer updates; ``optimizer.state`` has it as a key.
        group: the optimizer's settings for it.
        replicated: every rank holds the same; each saves its part.
        swapped: brings it into memory and, if it was written, back.
    """

    pieces: tuple[Piece, ...]
    numel: int
    master: Tensor
    optimizer: torch.optim.Optimizer
    group: dict[str, Any]
    replicated: bool = False
    swapped: Callable[[], AbstractContextManager[Any]] = nullcontext

    def own(self) -> Iterator[Piece]:
        """The pieces that this rank answers for, none of them empty: over all ranks they make up
        every parameter exactly once."""
        for piece in self.pieces:
            if self.replicated:
                piece = piece.part(dist.get_rank(), dist.get_world_size())
            if piece.numel:
                yield piece

    def tensors(self) -> dict[str, Tensor]:
        """The master and every state of its length, flat. They may share memory with it."""
        state = self.optimizer.state.get(self.master, {})
        held = {k: v for k, v in state.items() if self._is_tensor(k, v)}
        return {k: v.detach().reshape(-1) for k, v in {MASTER: self.master, **held}.items()}

    def scalars(self) -> dict[str, float]:
        """Every other number of the optimizer's state: ``step``."""
        state = self.optimizer.state.get(self.master, {})
        return {k: float(v) for k, v in state.items() if not self._is_tensor(k, v)}

    @torch.no_grad()
    def write(self, key: str, values: Tensor) -> None:
        """Set the master or a state; one that the optimizer makes in its first step is made."""
        if key == MASTER:
            self.master.data.copy_(values.view(self.master.shape))
            return
        state = self.optimizer.state[self.master]
        if key not in state:
            state[key] = torch.zeros_like(self.master)
        state[key].copy_(values.view(self.master.shape))

    def write_scalar(self, key: str, value: float) -> None:
        """Set ``step``, as the kind of number that the optimizer counts with."""
        state = self.optimizer.state[self.master]
        if isinstance(state.get(key), Tensor):
            state[key].fill_(value)
        elif type(self.optimizer).__module__.startswith("deepspeed."):
            state[key] = int(value)
        else:
            with_kernel = self.group.get("fused") or self.group.get("capturable")
            device = self.master.device if with_kernel else "cpu"
            state[key] = torch.tensor(value, dtype=torch.float32, device=device)

    def _is_tensor(self, key: str, value: Any) -> bool:
        """Whether it has a value per element. A scalar parameter's step has its shape, too."""
        if not isinstance(value, Tensor) or key == "step":
            return False
        if value.numel() == self.numel:
            return True
        if value.numel() == 1:
            return False
        raise CheckpointError(
            f"optimizer state {key!r} has shape {tuple(value.shape)} where the master has "
            f"{self.numel} elements: it can't be cut into slices, so this optimizer can't be saved"
        )


def flats(engine: Any) -> list[Flat]:
    """Everything that the optimizer of ``engine`` holds on this rank, in an order that is the same
    in every process of the same config."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return _stage_3(optimizer, engine.param_names)
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        masters, groups = optimizer.single_partition_of_fp32_groups, []
        # Its own order, which is another one with round_robin_gradients.
        rows = optimizer.round_robin_bit16_groups, optimizer.round_robin_bit16_offsets
        for params, offsets in zip(*rows, strict=True):
            groups.append(list(zip(params, offsets, strict=True)))
        return _partitioned(optimizer, masters, groups, engine.param_names)
    if hasattr(optimizer, "fp32_groups_flat_partition"):
        masters, groups = optimizer.fp32_groups_flat_partition, []
        for params in optimizer.bf16_groups:
            ends = list(accumulate((p.numel() for p in params), initial=0))
            groups.append(list(zip(params, ends[:-1], strict=True)))
        return _partitioned(optimizer, masters, groups, engine.param_names)
    return _replicated(optimizer, engine.param_names)


def lower(engine: Any) -> None:
    """Make the module's parameters of the masters, as a step does. All ranks call it together."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        optimizer._partition_all_parameters()
        for i, flat in enumerate(flats(engine)):
            with flat.swapped():
                optimizer._reassign_or_swap_out_partitioned_parameters(i)
        optimizer.invalidate_secondary_tensor()
        if optimizer.persistent_parameters:  # whole on every rank, never cut while training
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp16_groups"):
        names = {name: p for p, name in engine.param_names.items()}
        for flat in flats(engine):
            for piece in flat.pieces:
                values = flat.tensors()[MASTER][piece.at : piece.at + piece.numel]
                names[piece.name].data.copy_(values.view(piece.shape))


def _replicated(optimizer: Any, names: dict[Tensor, str]) -> list[Flat]:
    """Stage 0: a master per parameter (the parameter itself in fp32) or per group."""
    base = getattr(optimizer, "optimizer", optimizer)
    found = []
    for i, group in enumerate(base.param_groups):
        params = optimizer.fp16_groups[i] if base is not optimizer else group["params"]
        bundles = [params] if len(group["params"]) != len(params) else [[p] for p in params]
        for master, bundle in zip(group["params"], bundles, strict=True):
            pieces, at = [], 0
            for p in bundle:
                pieces.append(Piece(names[p], tuple(p.shape), start=0, at=at, numel=p.numel()))
                at += p.numel()
            found.append(
                Flat(
                    pieces=tuple(pieces),
                    numel=master.numel(),
                    master=master,
                    optimizer=base,
                    group=group,
                    replicated=True,
                )
            )
    return found


def _partitioned(
    optimizer: Any,
    masters: list[Tensor],
    groups: list[list[tuple[Tensor, int]]],
    names: dict[Tensor, str],
) -> list[Flat]:
    """Stages 1 and 2: a group's parameters, each at its offset in one long row, which is cut into
    equal parts."""
    found = []
    for i, (master, params) in enumerate(zip(masters, groups, strict=True)):
        begin = dist.get_rank(group=optimizer.real_dp_process_group[i]) * master.numel()
        pieces = []
        for p, offset in params:
            low = max(offset, begin)
            high = min(offset + p.numel(), begin + master.numel())
            if low < high:
                piece = Piece(names[p], tuple(p.shape), low - offset, low - begin, high - low)
                pieces.append(piece)
        found.append(
            Flat(
                pieces=tuple(pieces),
                numel=master.numel(),
                master=master,
                optimizer=optimizer.optimizer,
                group=optimizer.optimizer.param_groups[i],
            )
        )
    return found


def _stage_3(optimizer: Any, names: dict[Tensor, str]) -> list[Flat]:
    """Stage 3: of each parameter of a sub-group this rank's part, padded to the same length."""
    found = []
    for i, params in enumerate(optimizer.fp16_groups):
        rank, pieces, at = optimizer._get_sub_group_partition_rank(i), [], 0
        for p in params:
            length = p.partition_numel()
            start = min(rank * length, p.ds_numel)
            numel = min(length, p.ds_numel - start)
            pieces.append(Piece(names[p], tuple(p.ds_shape), start, at, numel))
            at += length
        swapped = optimizer._swappable_optimizer_subgroup(i)
        found.append(
            Flat(
                pieces=tuple(pieces),
                numel=at,
                master=optimizer.fp32_partitioned_groups_flat[i],
                optimizer=optimizer.optimizer,
                group=optimizer.optimizer.param_groups[optimizer.sub_group_to_group_id[i]],
                swapped=_swapping(optimizer, i) if swapped else nullcontext,
            )
        )
    return found


def _swapping(optimizer: Any, index: int) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def swapped() -> Iterator[None]:
        optimizer._optimizer_states_and_gradient_swap_in(index)
        try:
            yield
        finally:
            optimizer._optimizer_states_and_gradient_swap_out(index)

    return swapped
