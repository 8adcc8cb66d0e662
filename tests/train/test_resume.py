"""A resumed run is the uninterrupted one, bit for bit, in fresh processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from runs import checkpoints, folder_of, records, steps_of
from safetensors.torch import load_file

from xtdist.checkpoint import read_manifest
from xtdist.checkpoint.weights import load_weights
from xtdist.train import RunSpec
from xtdist.train.state import BYTES_PER_PARAMETER

STEPS, SAVED = 6, 3


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by file and name."""
    return {
        f"{path.relative_to(checkpoint)}/{name}": tensor
        for path in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same_checkpoint(a: Path, b: Path) -> None:
    """Equal weights, masters and moments of every rank, and all of them there."""
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    for rank in range(2):
        kinds = {k.split("|")[1] for k in ours if k.startswith(f"state/rank-0000{rank}-of-00002.")}
        assert kinds == {"master", "exp_avg", "exp_avg_sq"}
    one, other = read_manifest(a).meta, read_manifest(b).meta
    assert one["counters"] == other["counters"]
    assert one["counters"]["global_steps"] == STEPS


def cut_back(whole: RunSpec, cut: RunSpec) -> None:
    """Make ``cut`` the run ``whole`` as it was when it had only its first checkpoint."""
    first = checkpoints(whole)[0]
    shutil.copytree(first, folder_of(cut) / "checkpoints" / first.name)


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(make_spec: Any) -> None:
    cases = {f"{p}-{z}": (p, z) for p in ("fp32", "bf16") for z in range(4)}
    whole = {name: make_spec(f"whole-{name}", changes(*case)) for name, case in cases.items()}
    cut = {name: make_spec(f"cut-{name}", changes(*case)) for name, case in cases.items()}
    for outcome in run_ranks(list(whole.values())):
        assert outcome.ok, outcome.printed
    for name in cases:
        assert steps_of(whole[name]) == [SAVED, STEPS]
        cut_back(whole[name], cut[name])
    for outcome in run_ranks(list(cut.values())):
        assert outcome.ok, outcome.printed
    for name in cases:
        assert_same_end(whole[name], cut[name])
    exported = {n: load_weights(folder_of(spec)).model.state_dict() for n, spec in whole.items()}
    for stage in (1, 2, 3):  # every stage exports the same network
        for key, tensor in exported["fp32-0"].items():
            other = exported[f"fp32-{stage}"][key]
            torch.testing.assert_close(other, tensor, rtol=1e-4, atol=1e-4)


def changes(precision: str, stage: int) -> dict[str, Any]:
    return {
        "engine.precision": precision,
        "engine.zero_stage": stage,
        "loop.steps": STEPS,
        "checkpoint.every": SAVED,
        "loop.sample_prompts": ("def ",),
        "loop.sample_tokens": 4,
        "batch.micro_batch_tokens": 32,
        "model.feedforward": {"kind": "mlp", "dropout": 0.1},
        "optim.schedule": {"kind": "cosine", "warmup_steps": 2},
    }


def assert_same_end(a: RunSpec, b: RunSpec) -> None:
    """``b`` repeated the end of ``a``: numbers, samples, and all that was saved."""
    for key in ("train/loss", "train/lr", "train/grad_norm", "train/tokens"):
        assert records(b, key) == records(a, key)[SAVED:], (b.name, key)
    assert steps_of(b) == [SAVED, STEPS]
    assert_same_checkpoint(checkpoints(a)[-1], checkpoints(b)[-1])
    samples = (folder_of(a) / "samples.jsonl").read_text().splitlines()
    assert (folder_of(b) / "samples.jsonl").read_text().splitlines() == samples[1:]
    parameters = sum(p.numel() for p in load_weights(folder_of(a)).model.parameters())
    saved = sum(t.numel() * t.element_size() for t in tensors(checkpoints(a)[-1]).values())
    assert saved <= parameters * BYTES_PER_PARAMETER
    assert saved >= parameters * (BYTES_PER_PARAMETER - 2)
