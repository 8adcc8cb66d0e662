"""Taking a checkpoint: everything is copied to host memory on the step path; writing it is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from xtdist.checkpoint import WeightsConfig
from xtdist.checkpoint.chat_template import CHAT_TEMPLATE
from xtdist.checkpoint.weights import AVERAGED, NET_PREFIX, save_weights
from xtdist.config import ResourceError
from xtdist.data import TOKENIZER_FILE
from xtdist.train.state.average import AVERAGE, averaged
from xtdist.train.state.flats import flats
from xtdist.train.state.host import HostCopies
from xtdist.train.state.shards import EXTRA, Held, shard_name, write_shard

if TYPE_CHECKING:
    from xtdist.train.run import Run

PREFIX = "objective."
WEIGHTS = "weights"
COUNTERS = ("global_steps", "global_samples", "skipped_steps")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
# bytes per parameter in a checkpoint: weights to serve, masters, two moments
BYTES_PER_PARAMETER = 4 + 4 + 8
BYTES_OF_AVERAGE = 4 + 4  # with optim.ema: the average, weights to serve

Writer = Callable[[Path], None]


def snapshot(run: Run, host: HostCopies) -> dict[str, Writer]:
    """What this rank has to write, by path in the checkpoint: each writer makes that file or, for
    ``weights`` and ``weights-ema`` (rank 0), that folder. All ranks call it together; training may
    go on as soon as it returns, since everything was copied, to where ``host`` had the last one:
    the writers of an earlier snapshot must have ended."""
    engine = run.stepper.engine
    held: list[Held] = []
    for i, flat in enumerate(flats(engine)):
        with flat.swapped():
            tensors = flat.tensors() | {EXTRA + k: each[i] for k, each in run.extras.items()}
            for piece in flat.own():
                parts = {k: t[piece.at : piece.at + piece.numel] for k, t in tensors.items()}
                copies = {k: host.copy(f"{piece.name}|{k}", t) for k, t in parts.items()}
                held.append(Held(piece, copies, flat.scalars()))
    name = shard_name(dist.get_rank(), dist.get_world_size())
    files: dict[str, Writer] = {name: partial(write_shard, held=held)}
    files |= _weights(run, WEIGHTS, host)
    if AVERAGE in run.extras:
        with averaged(engine, run.extras[AVERAGE]):
            files |= _weights(run, AVERAGED, host)
    host.wait()
    return files


def _weights(run: Run, name: str, host: HostCopies) -> dict[str, Writer]:
    """The module's weights as they are now, to be written into the folder ``name`` by rank 0."""
    state = objective_state(run.stepper.engine)
    if state is None:
        return {}
    tokenizer = run.folder / TOKENIZER_FILE
    run.record.data.tokenizer.save(tokenizer)
    config = run.record.weights(step=run.position.step)
    write = partial(
        _write_weights,
        state=_copies(state, lambda key, tensor: host.copy(f"{name}/{key}", tensor)),
        config=config,
        tokenizer=tokenizer,
        chat_template=run.folder / CHAT_TEMPLATE if run.spec.checkpoint.chat_template else None,
    )
    return {name: write}


def keep_chat_template(given: str | None, folder: Path) -> None:
    """Copy the chat template into the run's folder, once at the start: what happens to the file
    later does not end the run. Only on rank 0."""
    if given is not None and dist.get_rank() == 0:
        shutil.copyfile(given, folder / CHAT_TEMPLATE)


def describe(run: Run) -> dict[str, Any]:
    """The checkpoint's entry in its manifest."""
    engine = run.stepper.engine
    scaler = loss_scaler(engine)
    return {
        "kind": "checkpoint",
        "step": run.position.step,
        "tokens": run.position.tokens,
        "identity": run.record.identity(run.position.step),
        "mlflow_run_id": run.record.mlflow_run_id,
        "workers": dist.get_world_size(),
        "zero_stage": int(engine.zero_optimization_stage()),
        "counters": {key: int(getattr(engine, key)) for key in COUNTERS},
        "loss_scaler": {k: getattr(scaler, k) for k in SCALER if hasattr(scaler, k)},
    }


def loss_scaler(engine: Any) -> Any:
    """What scales the loss of an fp16 run (of others, something that scales by 1, or None)."""
    optimizer = engine.optimizer
    return getattr(optimizer, "loss_scaler", getattr(optimizer, "loss_scale_config", None))


def objective_state(engine: Any) -> dict[str, Tensor] | None:
    """The whole state_dict of the objective and its network on rank 0 (None elsewhere). Collective
    under ZeRO-3."""
    if engine.zero_optimization_stage() == 3:
        state = engine._zero3_consolidated_16bit_state_dict()
    else:
        state = engine.module.state_dict()
    if dist.get_rank() != 0:
        return None
    return {
        name.removeprefix(PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(PREFIX)
    }


def check_disk(engine: Any, root: Path, *, averaged: bool) -> None:
    """All ranks agree whether the checkpoint fits on the disk of each."""
    root.mkdir(parents=True, exist_ok=True)
    parameters = sum(_numel(p) for p in engine.module.parameters())
    need = checkpoint_bytes(parameters, averaged=averaged)
    free = shutil.disk_usage(root).free
    least = torch.tensor([float(free)], device=engine.device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    if least.item() < need:
        raise ResourceError(
            f"{root}: a checkpoint needs about {need / 1e6:.0f} MB and the disk has "
            f"{least.item() / 1e6:.0f} MB free; free some space or set output to another disk, "
            "then run the same command: it goes on from the newest checkpoint"
        )


def checkpoint_bytes(parameters: int, *, averaged: bool, size: int = 4, muon: int = 0) -> int:
    """About what one checkpoint takes on disk. ``averaged``: with averaged weights; ``size``: bytes
    of each of the weights to serve; ``muon``: parameters that have one moment."""
    each = BYTES_PER_PARAMETER + (BYTES_OF_AVERAGE if averaged else 0)
    each -= (4 - size) * (2 if averaged else 1)
    return parameters * each - 4 * muon + 1_000_000


def _copies(state: dict[str, Tensor], copy: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """Copies in host memory; tensors that share memory still do, so that they are written once."""
    copies: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    out = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() else (id(tensor), ())
        if key not in copies:
            copies[key] = copy(name, tensor)
        out[name] = copies[key]
    return out


def _write_weights(
    folder: Path,
    *,
    state: dict[str, Tensor],
    config: WeightsConfig,
    tokenizer: Path,
    chat_template: Path | None,
) -> None:
    net = {n.removeprefix(NET_PREFIX): t for n, t in state.items() if n.startswith(NET_PREFIX)}
    own = {n: t for n, t in state.items() if not n.startswith(NET_PREFIX)}
    save_weights(folder, net, config, tokenizer=tokenizer, own=own, chat_template=chat_template)


def _numel(parameter: Tensor) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
