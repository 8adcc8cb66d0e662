"""A run goes on with another number of workers, at another ZeRO stage, as if nothing happened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from runs import checkpoints, folder_of, records, steps_of
from safetensors import safe_open
from safetensors.torch import load_file

from xtdist.train import RunSpec

SAVED, STEPS = 3, 13
BASE = {
    "loop.steps": STEPS,
    "loop.valid_every": 0,
    "checkpoint.every": SAVED,
    "checkpoint.keep": 100,
    "batch.micro_batch_tokens": 32,
}
MakeSpec = Callable[..., RunSpec]


def whole(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All parameters and moments of a checkpoint, put together from the slices of all ranks, and
    the weights; each element must be there once."""
    parts: dict[str, torch.Tensor] = {}
    for path in checkpoint.glob("state/*.safetensors"):
        with safe_open(path, framework="pt") as file:
            pieces = json.loads(file.metadata()["pieces"])
            for key in file.keys():  # noqa: SIM118 - not a mapping
                piece = pieces[key.split("|")[0]]
                shape, start = piece["shape"], piece["start"]
                flat = parts.setdefault(key, torch.full(shape, torch.nan)).view(-1)
                assert flat[start : start + piece["numel"]].isnan().all()
                flat[start : start + piece["numel"]] = file.get_tensor(key)
    assert not any(t.isnan().any() for t in parts.values())
    net = load_file(checkpoint / "weights" / "model.safetensors")
    parts |= {f"net.{name}": t for name, t in net.items()}
    own = checkpoint / "weights" / "objective.safetensors"
    return parts | (load_file(own) if own.exists() else {})


def assert_restored(spec: RunSpec, checkpoint: Path, step: int) -> None:
    """``spec`` began with exactly what ``checkpoint`` holds."""
    found = load_file(folder_of(spec) / f"restored-{step}.safetensors")
    saved = whole(checkpoint)
    assert {k for k in saved if "|" in k} == {k for k in found if "|" in k}
    for key, tensor in saved.items():
        assert tensor.dtype == found[key].dtype
        assert torch.equal(tensor, found[key]), (spec.name, key)


def at(spec: RunSpec, step: int) -> Path:
    """The checkpoint of ``step``."""
    return checkpoints(spec)[steps_of(spec).index(step)]


def go_on(make_spec: MakeSpec, source: RunSpec, name: str, changes: dict[str, Any]) -> RunSpec:
    """A run that begins with the checkpoint of step ``SAVED`` of ``source``."""
    spec = make_spec(name, changes)
    saved = at(source, SAVED)
    shutil.copytree(saved, folder_of(spec) / "checkpoints" / saved.name)
    return spec


def run_all(*jobs: tuple[RunSpec, str]) -> None:
    """Each with what faults.py does to it."""
    specs, faults = [spec for spec, _ in jobs], [fault for _, fault in jobs]
    for outcome in run_ranks(specs, patches=dict(enumerate(faults)), timeout_s=900):
        assert outcome.ok, (outcome.errors, outcome.printed)


def ledger(spec: RunSpec) -> dict[int, list[int]]:
    """The samples of each step, of all ranks that ever took part; each step once."""
    seen: dict[int, list[list[int]]] = {}
    for path in sorted(folder_of(spec).glob("batches-*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            seen.setdefault(row["step"], []).append(row["sample_ids"])
    return {step: sorted(i for ids in each for i in ids) for step, each in seen.items()}


@pytest.mark.slow
def test_two_workers_then_one_then_three_are_one_run(make_spec: MakeSpec) -> None:
    def changes(stage: int, workers: int, steps: int = SAVED) -> dict[str, Any]:
        return BASE | {
            "engine.zero_stage": stage,
            "workers.count": workers,
            "loop.steps": steps,
        }

    low = {"engine.precision": "bf16"}
    two = make_spec("two", changes(2, 2, STEPS))
    frozen = make_spec("frozen", changes(3, 2))
    bf16 = make_spec("bf16", changes(3, 2) | low)
    run_all((two, "noted"), (frozen, "partly_frozen"), (bf16, "noted"))

    one = go_on(make_spec, two, "elastic", changes(3, 1, 2 * SAVED))
    frozen_1 = go_on(make_spec, frozen, "frozen-1", changes(0, 1))
    bf16_1 = go_on(make_spec, bf16, "bf16-1", changes(1, 1) | low)
    run_all((one, "noted"), (frozen_1, "partly_frozen"), (bf16_1, "noted"))

    three = make_spec("elastic", changes(0, 3, STEPS))  # goes on from the one worker's last
    frozen_3 = go_on(make_spec, frozen, "frozen-3", changes(2, 3))
    bf16_3 = go_on(make_spec, bf16, "bf16-3", changes(0, 3) | low)
    run_all((three, "noted"), (frozen_3, "partly_frozen"), (bf16_3, "noted"))

    assert_restored(one, at(two, SAVED), SAVED)
    assert_restored(three, at(three, 2 * SAVED), 2 * SAVED)
    for source, resumed in ((frozen, (frozen_1, frozen_3)), (bf16, (bf16_1, bf16_3))):
        for spec in resumed:
            assert_restored(spec, at(source, SAVED), SAVED)
    kept = whole(at(frozen, SAVED))
    assert torch.equal(kept["frozen"], torch.full((3, 5), float(SAVED)))
    assert torch.equal(kept["net.counted"], torch.full((2,), float(SAVED)))

    ours, theirs = records(three, "train/loss"), records(two, "train/loss")
    assert len(theirs) == STEPS
    torch.testing.assert_close(ours, theirs[SAVED:], rtol=0, atol=1e-6)
    assert ledger(three) == {step: ids for step, ids in ledger(two).items() if step >= SAVED}
    assert sorted(ledger(three)) == list(range(SAVED, STEPS))


STAGES = {f"zero{stage}": {"engine.zero_stage": stage} for stage in range(4)}
VARIANTS = STAGES | {
    "offload1": STAGES["zero1"] | {"engine.offload_optimizer": {"kind": "cpu"}},
    "offload3": STAGES["zero3"] | {"engine.offload_optimizer": {"kind": "cpu"}},
    "robin": STAGES["zero2"] | {"engine.round_robin_gradients": True},
}
SETTINGS = {
    "fp32": {"engine.precision": "fp32"},
    "bf16": {"engine.precision": "bf16"},
    "muon": {"engine.precision": "bf16", "optim.kind": "muon"},
}


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_stage_and_offload_is_restored_at_every_other(
    make_spec: MakeSpec, setting: str
) -> None:
    def make(name: str, variant: str, workers: int) -> RunSpec:
        size = {"workers.count": workers, "loop.steps": SAVED}
        changes: dict[str, Any] = BASE | SETTINGS[setting] | VARIANTS[variant] | size
        return make_spec(f"{setting}-{name}", changes)

    sources = {variant: make(variant, variant, 2) for variant in VARIANTS}
    run_all(*((spec, "noted") for spec in sources.values()))
    for workers in (1, 3):
        pairs = []
        for before, source in sources.items():
            for after in VARIANTS:
                spec = make(f"{before}-{after}-{workers}", after, workers)
                shutil.copytree(folder_of(source) / "checkpoints", folder_of(spec) / "checkpoints")
                pairs.append((source, spec))
        run_all(*((spec, "noted") for _, spec in pairs))
        for source, spec in pairs:
            assert_restored(spec, at(source, SAVED), SAVED)
