"""What a run does when something is wrong: one clear error on every rank, nothing half-written."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import FAULTS
from ranks import Outcome, run_ranks
from runs import checkpoints, folder_of, records, steps_of

from xtdist.checkpoint import CheckpointStore, read_manifest
from xtdist.checkpoint.layout import hash_file, write_manifest
from xtdist.train import RunSpec

BASE = {"loop.steps": 4, "checkpoint.every": 2, "loop.valid_every": 0}
KILLED = ".staging-step_00000006-dead0000"


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "model": ({"model.depth": 1, "model.heads": 4}, ["model.depth", "model.heads"]),
    "dataset": ({}, ["data.dataset_id"]),
    "seed": ({"seed": 4}, ["seed: checkpoint 3, config 4"]),
    "batch": ({"batch.tokens_per_step": 64}, ["batch.tokens_per_step: checkpoint 128, config 64"]),
    "precision": ({"engine.precision": "bf16"}, ["precision: checkpoint 'fp32', config 'bf16'"]),
}
"""What a run may not change when it goes on, and what it is told."""

NAN = [f"{fault}{stage}" for stage in range(4) for fault in ("nan_loss", "nan_gradient")]


@pytest.fixture(scope="module")
def first(make_spec: Any) -> dict[str, tuple[RunSpec, Outcome]]:
    """One group of processes: runs that end early in every way, and one that ends well."""
    specs = {name: make_spec(name, BASE | {"engine.zero_stage": int(name[-1])}) for name in NAN}
    specs["full_disk"] = make_spec("full_disk", BASE)
    specs["huge_lr"] = make_spec("huge_lr", BASE | {"optim.lr": 1e38, "engine.zero_stage": 0})
    specs["stop_request"] = make_spec("stop_request", BASE | {"checkpoint.every": 100})
    specs["source"] = make_spec("source", BASE)
    names = [name.rstrip("0123") for name in specs]
    outcomes = run_ranks(
        list(specs.values()), patches={i: n for i, n in enumerate(names) if n in FAULTS}
    )
    return {n: (s, o) for (n, s), o in zip(specs.items(), outcomes, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAN, "huge_lr"])
def test_a_step_that_is_not_finite_ends_the_run_on_every_rank_with_the_reason(
    first: dict[str, tuple[RunSpec, Outcome]], name: str
) -> None:
    spec, outcome = first[name]
    error = outcome.same_error
    assert error.startswith("NonFiniteLossError: ")
    assert "optim.lr" in error
    if name in NAN:  # the third forward pass is step 2's, after a checkpoint of two finished steps
        assert f"the {name[4:].rstrip('0123')} of step 2 is not finite" in error
        assert len(records(spec, "train/loss")) == 2
        assert steps_of(spec) == [2]


@pytest.mark.slow
def test_a_disk_too_full_for_a_checkpoint_is_said_before_anything_is_written(
    first: dict[str, tuple[RunSpec, Outcome]],
) -> None:
    spec, outcome = first["full_disk"]
    error = outcome.same_error
    assert error.startswith("ResourceError: ")
    assert "a checkpoint needs about 2 MB and the disk has 0 MB free" in error
    assert list((folder_of(spec) / "checkpoints").iterdir()) == []
    metrics = folder_of(spec) / "metrics.jsonl"
    assert not metrics.exists() or not metrics.read_text()  # nor is a step trained for nothing


@pytest.fixture(scope="module")
def second(
    make_spec: Any, other_dataset: Path, first: dict[str, tuple[RunSpec, Outcome]]
) -> dict[str, tuple[RunSpec, Outcome]]:
    """Another group, which meets the checkpoints of the first one in every condition."""
    source, outcome = first["source"]
    assert outcome.ok, outcome.printed

    def renamed(name: str, changes: dict[str, Any]) -> RunSpec:
        spec: RunSpec = make_spec(name, BASE | changes)
        shutil.copytree(folder_of(source) / "checkpoints", folder_of(spec) / "checkpoints")
        return spec

    specs = {name: renamed(name, changes) for name, (changes, _) in REFUSED.items() if changes}
    specs["dataset"] = renamed("dataset", {"data.path": str(other_dataset)})
    specs["killed"] = renamed("killed", {"loop.steps": 6})
    half = folder_of(specs["killed"]) / "checkpoints" / KILLED / "state" / "half.safetensors"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    specs["damaged"] = renamed("damaged", {})
    flip_a_bit(next(checkpoints(specs["damaged"])[-1].glob("state/*")))
    specs["all_damaged"] = renamed("all_damaged", {})
    for path in checkpoints(specs["all_damaged"]):
        flip_a_bit(next(path.glob("state/*")))
    specs["hostile"] = renamed("hostile", {"loop.steps": 6})
    for shard in checkpoints(specs["hostile"])[-1].glob("state/*"):
        mark = folder_of(specs["hostile"]) / "executed"
        torch.save({"optimizer_state_dict": _Hostile(mark)}, shard)
    _sign_again(checkpoints(specs["hostile"])[-1])
    specs["stopped"] = first["stop_request"][0]
    outcomes = run_ranks(list(specs.values()))
    return {n: (s, o) for (n, s), o in zip(specs.items(), outcomes, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_checkpoint_of_another_run_is_refused_naming_each_difference(
    second: dict[str, tuple[RunSpec, Outcome]], name: str
) -> None:
    fields = REFUSED[name][1]
    error = second[name][1].same_error
    assert error.startswith("CheckpointError: ")
    assert all(field in error for field in fields), error
    assert len(error.splitlines()) == 2 + len(fields)  # and no others


@pytest.mark.slow
def test_what_a_killed_save_left_is_swept(second: dict[str, tuple[RunSpec, Outcome]]) -> None:
    spec, outcome = second["killed"]
    assert outcome.ok, outcome.printed
    assert not (folder_of(spec) / "checkpoints" / KILLED).exists()
    assert len(records(spec, "train/loss")) == 2
    assert steps_of(spec) == [2, 4, 6]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(
    first: dict[str, tuple[RunSpec, Outcome]], second: dict[str, tuple[RunSpec, Outcome]]
) -> None:
    spec, outcome = second["damaged"]
    assert outcome.ok, outcome.printed
    assert records(spec, "train/loss") == records(first["source"][0], "train/loss")[2:]
    newest = checkpoints(first["source"][0])[-1].name
    assert (folder_of(spec) / "checkpoints" / f"damaged-{newest}").is_dir()
    assert steps_of(spec) == [2, 4]


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again_by_itself(
    second: dict[str, tuple[RunSpec, Outcome]],
) -> None:
    spec, outcome = second["all_damaged"]
    error = outcome.same_error
    assert error.startswith("CheckpointError: ")
    assert "all checkpoints of this run are damaged and set aside" in error
    assert "remove or rename that folder to start over" in error
    aside = [path.name for path in (folder_of(spec) / "checkpoints").iterdir()]
    assert [name[:14] for name in aside] == ["damaged-step_0"] * 2


@pytest.mark.slow
def test_code_in_a_checkpoint_is_not_executed(
    second: dict[str, tuple[RunSpec, Outcome]], tmp_path: Path
) -> None:
    spec, outcome = second["hostile"]
    assert not (folder_of(spec) / "executed").exists()
    for error in outcome.errors:
        assert str(error).startswith("CheckpointError: ")
        assert "not a shard of a checkpoint, nothing was loaded" in str(error)
    pickle.loads(pickle.dumps(_Hostile(tmp_path / "executed")))  # it would have worked
    assert (tmp_path / "executed").is_dir()


@pytest.mark.slow
def test_a_stop_request_saves_and_ends_and_the_next_start_goes_on(
    first: dict[str, tuple[RunSpec, Outcome]], second: dict[str, tuple[RunSpec, Outcome]]
) -> None:
    assert first["stop_request"][1].ok
    spec, outcome = second["stopped"]
    assert outcome.ok, outcome.printed
    assert steps_of(spec) == [1, 4]
    assert records(spec, "train/loss") == records(first["source"][0], "train/loss")
    assert records(spec, "train/tokens") == [128.0, 256.0, 384.0, 512.0]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class _Hostile:
    """Unpickling it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def _sign_again(checkpoint: Path) -> None:
    """Make the manifest agree with the files, as an attacker would."""
    manifest = read_manifest(checkpoint)
    files = {name: hash_file(checkpoint / name) for name in manifest.files}
    write_manifest(checkpoint, files, manifest.meta)
    CheckpointStore(checkpoint.parent).open(checkpoint.name)
