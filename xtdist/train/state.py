"""Saving and restoring a run: ZeRO shards, weights, and the record of what they belong to.

No random state is saved: every draw is derived from (seed, step, sample id), and the data position
is the step, so a resumed run repeats the one that was never interrupted bit for bit.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from xtdist.checkpoint import CheckpointStore, PendingCommit, WeightsConfig, read_manifest
from xtdist.checkpoint.weights import NET_PREFIX, save_weights
from xtdist.config import CheckpointError, ResourceError, to_mapping
from xtdist.data import TOKENIZER_FILE, View
from xtdist.train.spec import RunSpec

PREFIX = "objective."
TAG = "zero"
# bytes per parameter in a checkpoint: weights to serve, the engine's own, fp32 masters, two moments
BYTES_PER_PARAMETER = 4 + 4 + 4 + 8


@dataclass
class Position:
    """How far a run is. ``tokens``: target tokens trained on so far."""

    step: int = 0
    tokens: int = 0


def identity(spec: RunSpec, data: View, *, precision: str, step: int) -> dict[str, Any]:
    """What a checkpoint of ``step`` belongs to; a run resumes only where all of this is the same.
    Settings stand at their place in the config, so that a refusal names them as the user writes
    them. Of the data it is what came before ``step``: what comes later may change."""
    return {
        "model": to_mapping(spec.model),
        "objective": to_mapping(spec.objective),
        "seed": spec.seed,
        "data": _data_identity(data, step),
        "batch": {"tokens_per_step": spec.batch.tokens_per_step},
        "engine": {"precision": precision, "zero_stage": spec.engine.zero_stage},
        "workers": {"count": spec.workers.count},
    }


def _data_identity(data: View, step: int) -> dict[str, Any]:
    found = data.identity(step)
    ids, weights = found.pop("datasets"), found.pop("weights")
    for elsewhere in ("seed", "global_batch"):
        del found[elsewhere]
    if data.config.path is not None:
        (found["dataset_id"],) = ids.values()
        return found
    corpora = {n: {"dataset_id": i, "weight": weights.get(n, 0.0)} for n, i in ids.items()}
    return {**found, "corpora": corpora}


def check_identity(saved: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Refuse to resume another run's checkpoint.

    Raises:
        CheckpointError: naming every field that differs, with both values.
    """
    a, b = _flatten(saved), _flatten(now)
    rows = [
        f"  {key}: checkpoint {a.get(key)!r}, config {b.get(key)!r}"
        for key in sorted(set(a) | set(b))
        if a.get(key) != b.get(key)
    ]
    if rows:
        raise CheckpointError(
            f"{where} is of another run; it differs in\n"
            + "\n".join(rows)
            + "\nGive the run another name, put these keys back, or go back to a checkpoint from "
            "before the change: remove the newer ones."
        )


def find_commit(store: CheckpointStore, identity_at: Callable[[int], dict[str, Any]]) -> str | None:
    """On rank 0: sweep, verify, compare with the identity that this run has at the checkpoint's
    step; on all ranks: the checkpoint to resume from, or None.

    Raises:
        CheckpointError: on all ranks, when the newest valid checkpoint is of another run.
    """
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            store.sweep()
            commit = store.newest_valid()
            if commit is not None:
                now = identity_at(commit.step)
                check_identity(commit.manifest.meta["identity"], now, commit.path)
                answer[0] = commit.path.name
        except CheckpointError as e:
            answer[0] = e
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], CheckpointError):
        raise answer[0]
    name: str | None = answer[0]
    return name


def restore(engine: Any, path: Path) -> Position:
    """Load a committed checkpoint of the same world size and stage into a fresh engine. The
    optimizer's state is the checkpoint's; its settings (weight decay, betas …) are the config's.

    Raises:
        CheckpointError: it holds something else than ours do, code in a pickle for example.
    """
    settings = [
        {k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups
    ]
    try:
        loaded, client = engine.load_checkpoint(str(path), tag=TAG, load_lr_scheduler_states=False)
    except pickle.UnpicklingError as e:
        reason = str(e).splitlines()[0]
        raise CheckpointError(
            f"{path}: its shards hold more than tensors and numbers, so nothing was loaded; use "
            f"another checkpoint ({reason})"
        ) from None
    for group, wanted in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(wanted)
    if loaded is None:
        raise CheckpointError(f"{path}: the engine did not load it; its shards are not all there")
    meta = read_manifest(path).meta
    if client["step"] != meta["step"]:
        raise CheckpointError(
            f"{path}: its shards are of step {client['step']}, not {meta['step']}"
        )
    return Position(step=int(meta["step"]), tokens=int(meta["tokens"]))


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


def save(
    engine: Any, store: CheckpointStore, position: Position, *, attempt: str, record: Record
) -> PendingCommit:
    """Write this rank's part of a checkpoint; hashing and publishing go on in the background.

    Raises:
        ResourceError: on all ranks, before anything is written, when the disk can't hold it.
    """
    folder = store.staging(position.step, attempt)
    check_disk(engine, store.root)
    engine.save_checkpoint(
        str(folder), tag=TAG, client_state={"step": position.step}, save_latest=False
    )
    state = objective_state(engine)
    meta = {
        "kind": "checkpoint",
        "step": position.step,
        "tokens": position.tokens,
        "identity": record.identity(position.step),
        "mlflow_run_id": record.mlflow_run_id,
        "versions": {p: version(p) for p in ("xtdist", "torch", "deepspeed", "ray")},
    }
    if state is not None:
        config = record.weights(step=position.step)
        net = {n.removeprefix(NET_PREFIX): t for n, t in state.items() if n.startswith(NET_PREFIX)}
        own = {n: t for n, t in state.items() if not n.startswith(NET_PREFIX)}
        tokenizer = store.root.parent / TOKENIZER_FILE
        record.data.tokenizer.save(tokenizer)
        save_weights(folder / "weights", net, config, tokenizer=tokenizer, own=own)
    dist.barrier()
    return PendingCommit(
        store, folder, rank=dist.get_rank(), world=dist.get_world_size(), meta=meta
    )


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every checkpoint of a run says about itself."""

    spec: RunSpec
    data: View
    precision: str
    mlflow_run_id: str | None

    def identity(self, step: int) -> dict[str, Any]:
        """See :func:`identity`."""
        return identity(self.spec, self.data, precision=self.precision, step=step)

    def weights(self, *, step: int) -> WeightsConfig:
        ids = {name: dataset.dataset_id for name, dataset in self.data.datasets.items()}
        meta = {
            "run": self.spec.name,
            "step": step,
            "dataset_id": ids if self.spec.data.corpora else next(iter(ids.values())),
            "documents": self.spec.data.documents,
            "mlflow_run_id": self.mlflow_run_id,
            "xtdist": version("xtdist"),
        }
        return WeightsConfig(model=self.spec.model, objective=self.spec.objective, meta=meta)


def check_disk(engine: Any, root: Path) -> None:
    """All ranks agree whether the checkpoint fits on the disk of each."""
    root.mkdir(parents=True, exist_ok=True)
    need = checkpoint_bytes(sum(_numel(p) for p in engine.module.parameters()))
    free = shutil.disk_usage(root).free
    least = torch.tensor([float(free)], device=engine.device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    if least.item() < need:
        raise ResourceError(
            f"{root}: a checkpoint needs about {need / 1e6:.0f} MB and the disk has "
            f"{least.item() / 1e6:.0f} MB free; free some space or set output to another disk, "
            "then run the same command: it goes on from the newest checkpoint"
        )


def checkpoint_bytes(parameters: int) -> int:
    """About what one checkpoint takes on disk."""
    return parameters * BYTES_PER_PARAMETER + 1_000_000


def _numel(parameter: Tensor) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _flatten(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{path}.{key}" if path else key)
    return flat
