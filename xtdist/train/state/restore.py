"""Going on from a checkpoint, on any number of workers, at any ZeRO stage, offloaded or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from xtdist.checkpoint import Commit
from xtdist.checkpoint.weights import NET_PREFIX, OWN_TENSORS, TENSORS
from xtdist.config import CheckpointError
from xtdist.train.state.flats import Flat, flats, lower
from xtdist.train.state.position import Position
from xtdist.train.state.shards import EXTRA, FOLDER, Shards
from xtdist.train.state.snapshot import COUNTERS, PREFIX, SCALER, WEIGHTS, loss_scaler


def restore(engine: Any, commit: Commit) -> Position:
    """Load a committed checkpoint into a fresh engine. Every rank reads the slices that it holds.
    The optimizer's state is the checkpoint's; its settings (weight decay, betas …) are the
    config's.

    Raises:
        CheckpointError: on all ranks; it is damaged, or of another model.
    """
    error: CheckpointError | None = None
    try:
        with Shards.open(state_files(commit)) as shards:
            shards.check(_trained(engine), commit.path)
            for flat in flats(engine):
                with flat.swapped():
                    _fill(flat, shards)
        kept = _read_kept(engine, commit)
    except CheckpointError as e:
        error = e
    except (SafetensorError, OSError) as e:
        error = CheckpointError(f"{commit.path}: can't be read ({e}); use another checkpoint")
    _agree(error)
    lower(engine)
    _put_kept(engine, kept)
    meta = commit.manifest.meta
    for key in COUNTERS:
        setattr(engine, key, int(meta["counters"][key]))
    scaler = loss_scaler(engine)
    for key in SCALER:
        if hasattr(scaler, key) and key in meta["loss_scaler"]:
            setattr(scaler, key, meta["loss_scaler"][key])
    _check_weights(engine, commit.path)
    return Position(step=int(meta["step"]), tokens=int(meta["tokens"]))


def state_files(commit: Commit) -> list[Path]:
    """The shards of all ranks that saved it.

    Raises:
        CheckpointError: there is none.
    """
    names = sorted(n for n in commit.manifest.files if n.startswith(f"{FOLDER}/"))
    if not names:
        raise CheckpointError(
            f"{commit.path}: it has no {FOLDER}/ folder, so it can't be resumed from; it was saved "
            "by an older version, or is for generation only"
        )
    return [commit.path / name for name in names]


def _fill(flat: Flat, shards: Shards) -> None:
    """Read the master and the optimizer's state of ``flat``. A parameter that had no state (it
    never got a gradient) begins with zeros, as in an optimizer's first step."""
    keys = {k for piece in flat.pieces for k in shards.keys(piece.name)}
    scalars = [shards.scalars[p.name] for p in flat.pieces if p.name in shards.scalars]
    _check_kind(flat, keys)
    missing = flat.tensors().keys() - keys
    if missing and any(p.numel for p in flat.pieces):
        raise CheckpointError(
            f"the checkpoint has no {', '.join(sorted(missing))} of {flat.pieces[0].name}: it is "
            "of another optimizer"
        )
    for key in (k for k in keys if not k.startswith(EXTRA)):
        values = torch.zeros(flat.numel)
        for piece in flat.pieces:
            for at, part in shards.read(piece, key):
                values[at : at + part.numel()] = part
        flat.write(key, values)
    for key in {k for each in scalars for k in each}:
        flat.write_scalar(key, max(each.get(key, 0.0) for each in scalars))


def _check_kind(flat: Flat, keys: set[str]) -> None:
    """Refuse the state of AdamW for what is Muon's now, and the other way round."""
    kept = {"muon": "momentum_buffer", "adamw": "exp_avg"}
    now = flat.group.get("algorithm", "adamw")
    for kind, key in kept.items():
        if kind != now and key in keys:
            raise CheckpointError(
                f"{flat.pieces[0].name} and its group are updated by {now} now (optim.groups) and "
                f"the checkpoint has the state of {kind} for them; put optim.groups back as it "
                "was, or give the run another name"
            )


def _trained(engine: Any) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(getattr(p, "ds_shape", p.shape))
        for name, p in engine.module.named_parameters()
        if p.requires_grad
    }


def _read_kept(engine: Any, commit: Commit) -> dict[str, Tensor]:
    """What no optimizer holds: persistent buffers and frozen parameters, from the weights."""
    module = engine.module
    persistent = module.state_dict(keep_vars=True).keys()
    names = [n for n, _ in module.named_buffers() if n in persistent]
    names += [n for n, p in module.named_parameters() if not p.requires_grad]
    found = {}
    for file, ours in ((TENSORS, True), (OWN_TENSORS, False)):
        wanted = [n for n in names if n.startswith(PREFIX + NET_PREFIX) == ours]
        if not wanted:
            continue
        with safe_open(commit.path / WEIGHTS / file, framework="pt") as tensors:
            there = set(tensors.keys())
            for name in wanted:
                saved = name.removeprefix(PREFIX).removeprefix(NET_PREFIX if ours else "")
                if saved not in there:
                    raise CheckpointError(
                        f"{commit.path}: no {saved} in {file}: it is of another model"
                    )
                found[name] = tensors.get_tensor(saved)
    return found


@torch.no_grad()
def _put_kept(engine: Any, kept: dict[str, Tensor]) -> None:
    import deepspeed

    for name, buffer in engine.module.named_buffers():
        if name in kept:
            buffer.copy_(kept[name])
    for name, p in engine.module.named_parameters():
        if name not in kept:
            continue
        if hasattr(p, "ds_id"):
            with deepspeed.zero.GatheredParameters([p], modifier_rank=0):
                if dist.get_rank() == 0:
                    p.data.copy_(kept[name])
        else:
            p.data.copy_(kept[name])


def _agree(error: CheckpointError | None) -> None:
    """Raise on all ranks what one of them met."""
    errors: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, None if error is None else str(error))
    first = next((e for e in errors if e is not None), None)
    if first is not None:
        raise CheckpointError(first)


def _check_weights(engine: Any, where: Path) -> None:
    """The same bits on every rank, by a sum per parameter; at stage 3 none is held twice."""
    if engine.zero_optimization_stage() == 3:
        return
    sums = [_bits(p.data).sum(dtype=torch.int64) for p in engine.module.parameters()]
    low = torch.stack(sums)
    high = low.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    if not torch.equal(low, high):
        raise CheckpointError(
            f"{where}: after loading it the ranks hold different weights: a fault of memory, disk "
            "or network; run the same command again"
        )


def _bits(tensor: Tensor) -> Tensor:
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(kinds[tensor.element_size()])
