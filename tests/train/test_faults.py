"""What a run does when something is wrong: one clear error on every rank, nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from runs import checkpoints, folder_of, records, steps_of

from xtdist.checkpoint import CheckpointStore
from xtdist.checkpoint.layout import MANIFEST, hash_file, list_files
from xtdist.train import RunSpec

BASE = {"loop.steps": 4, "loop.checkpoint_every": 2, "loop.valid_every": 0}


def renamed(make_spec: Any, source: RunSpec, name: str, changes: dict[str, Any]) -> RunSpec:
    """A run ``name`` that finds the checkpoints of ``source``."""
    spec: RunSpec = make_spec(name, BASE | changes)
    shutil.copytree(folder_of(source) / "checkpoints", folder_of(spec) / "checkpoints")
    return spec


@pytest.mark.slow
def test_a_step_that_can_not_be_taken_ends_the_run_with_the_reason_on_every_rank(
    make_spec: Any,
) -> None:
    names = ["nan_loss", "nan_gradient", "full_disk", "huge_lr"]
    specs = [make_spec(name, BASE) for name in names[:3]]
    specs.append(make_spec("huge_lr", BASE | {"optim.lr": 1e38, "engine.zero_stage": 0}))
    specs += [
        make_spec(f"{fault}{z}", BASE | {"engine.zero_stage": z})
        for z in (0, 1, 3)
        for fault in ("nan_loss", "nan_gradient")
    ]
    faults = {i: spec.name.rstrip("0123") for i, spec in enumerate(specs) if i != 3}
    outcomes = run_ranks(specs, patches=faults)
    by_name = dict(zip([s.name for s in specs], zip(specs, outcomes, strict=True), strict=True))
    for name, (spec, outcome) in by_name.items():
        assert len(set(outcome.errors)) == 1, (name, outcome.errors)  # all ranks say the same
        error = outcome.errors[0]
        assert error is not None, name
        if name.startswith("full"):
            assert error.startswith("ResourceError: ")
            assert "a checkpoint needs about" in error
            assert "MB and the disk has 0 MB free" in error
            assert list_files(folder_of(spec) / "checkpoints") == []
            assert list((folder_of(spec) / "checkpoints").iterdir()) == []
            assert len(records(spec, "train/loss")) == 2
        else:
            assert error.startswith("NonFiniteLossError: "), (name, error)
            assert "optim.lr" in error
        if name.startswith("nan"):
            # the third forward pass is step 2's, after the checkpoint of two finished steps
            assert error.startswith(f"NonFiniteLossError: the {name[4:].rstrip('0123')} of step 2")
            assert len(records(spec, "train/loss")) == 2
            assert steps_of(spec) == [2], name


@pytest.mark.slow
def test_a_stop_request_saves_and_ends_and_the_next_start_goes_on(make_spec: Any) -> None:
    spec = make_spec("stopped", BASE | {"loop.checkpoint_every": 100})
    (first,) = run_ranks([spec], patches={0: "stop_request"})
    assert first.ok, first.printed
    assert steps_of(spec) == [1]
    assert len(records(spec, "train/loss")) == 1
    whole = make_spec("whole", BASE | {"loop.checkpoint_every": 100})
    for outcome in run_ranks([spec, whole]):
        assert outcome.ok, outcome.printed
    assert records(spec, "train/loss") == records(whole, "train/loss")
    assert steps_of(spec) == [1, 4]


@pytest.mark.slow
def test_a_checkpoint_is_resumed_only_by_its_own_run_and_only_when_whole(
    make_spec: Any, other_dataset: Path
) -> None:
    """Two groups of processes: one trains, one meets every kind of checkpoint."""
    source = make_spec("source", BASE)
    (outcome,) = run_ranks([source])
    assert outcome.ok, outcome.printed
    losses = records(source, "train/loss")

    refused: dict[str, tuple[dict[str, Any], list[str]]] = {
        "model": ({"model.depth": 1, "model.heads": 4}, ["model.depth", "model.heads"]),
        "dataset": ({"data.path": str(other_dataset)}, ["dataset_id"]),
        "seed": ({"seed": 4}, ["seed: checkpoint 3, config 4"]),
        "stage": ({"engine.zero_stage": 1}, ["zero_stage: checkpoint 2, config 1"]),
        "batch": ({"batch.tokens_per_step": 64}, ["global_batch: checkpoint 8, config 4"]),
        "precision": ({"engine.precision": "bf16"}, ["precision"]),
    }
    specs = [renamed(make_spec, source, n, changes) for n, (changes, _) in refused.items()]

    swept = renamed(make_spec, source, "swept", {"loop.steps": 6})
    killed = folder_of(swept) / "checkpoints" / ".staging-step_00000006-dead0000"
    (killed / "zero").mkdir(parents=True)
    (killed / "zero" / "half.pt").write_bytes(b"half")

    damaged = renamed(make_spec, source, "damaged", {})
    newest = checkpoints(damaged)[-1]
    shard = next(newest.rglob("*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)

    hostile = renamed(make_spec, source, "hostile", {"loop.steps": 6})
    mark = folder_of(hostile) / "executed"
    for shard in checkpoints(hostile)[-1].rglob("*optim_states.pt"):
        torch.save({"optimizer_state_dict": _Hostile(mark)}, shard)
    _sign_again(checkpoints(hostile)[-1])

    outcomes = run_ranks([*specs, swept, damaged, hostile], timeout_s=240)
    for (name, (_, fields)), outcome in zip(refused.items(), outcomes, strict=False):
        assert len(set(outcome.errors)) == 1, (name, outcome.errors)
        error = str(outcome.errors[0])
        assert error.startswith("CheckpointError: "), (name, error)
        for field in fields:
            assert field in error, (name, error)
        assert len(error.splitlines()) == 2 + len(fields), (name, error)  # these and no others
    after_sweep, after_damage, after_hostile = outcomes[len(specs) :]

    assert after_sweep.ok, after_sweep.printed
    assert not killed.exists()
    assert len(records(swept, "train/loss")) == 2

    assert after_damage.ok, after_damage.printed
    assert records(damaged, "train/loss") == losses[2:]
    kept = [p.name for p in (folder_of(damaged) / "checkpoints").iterdir()]
    assert f"damaged-{newest.name}" in kept
    assert steps_of(damaged) == [2, 4]

    assert not mark.exists()
    for error in after_hostile.errors:
        assert str(error).startswith("CheckpointError: "), after_hostile.errors
        assert "more than tensors" in str(error)


@pytest.mark.slow
def test_another_number_of_workers_is_refused_on_all_of_them(make_spec: Any) -> None:
    source = make_spec("source", BASE | {"workers.count": 1})
    (outcome,) = run_ranks([source])
    assert outcome.ok, outcome.printed
    (outcome,) = run_ranks([renamed(make_spec, source, "more", {"workers.count": 2})])
    assert len(outcome.errors) == 2
    for error in outcome.errors:
        assert str(error).startswith("CheckpointError: ")
        assert "workers: checkpoint 1, config 2" in str(error)


class _Hostile:
    """Unpickling it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def _sign_again(checkpoint: Path) -> None:
    """Make the manifest agree with the files, as an attacker would."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    for name in manifest["files"]:
        entry = hash_file(checkpoint / name)
        manifest["files"][name] = {"bytes": entry.bytes, "sha256": entry.sha256}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    CheckpointStore(checkpoint.parent).open(checkpoint.name)


def test_the_hostile_file_of_these_tests_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Hostile(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()
