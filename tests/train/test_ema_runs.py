"""Averaged weights in runs: what they are, what they cost nothing, and that they survive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plain import adamw, plain_loop, valid_loss
from ranks import run_ranks
from runs import checkpoints, folder_of, records
from safetensors.torch import load_file
from torch import nn

from xtdist.checkpoint.weights import load_weights
from xtdist.config import CheckpointError
from xtdist.train import RunSpec

DECAY, STEPS = 0.7, 6
BASE = {
    "optim.ema": {"decay": DECAY},
    "loop.steps": STEPS,
    "loop.valid_every": 3,
}


class Recording:
    """torch's AdamW; ``averages`` are the bias-corrected ones of the weights after each step."""

    def __init__(self, spec: RunSpec, net: nn.Module) -> None:
        self.optimizer, self.net = adamw(spec, net), net
        self.param_groups, self.zero_grad = self.optimizer.param_groups, self.optimizer.zero_grad
        self.sums = {n: torch.zeros_like(p).double() for n, p in net.named_parameters()}
        self.steps = 0

    def step(self) -> None:
        self.optimizer.step()
        self.steps += 1
        for n, p in self.net.named_parameters():
            self.sums[n] = DECAY * self.sums[n] + (1 - DECAY) * p.detach()

    def averages(self) -> dict[str, torch.Tensor]:
        return {n: total / (1 - DECAY**self.steps) for n, total in self.sums.items()}


def averages_of_plain_loop(spec: RunSpec) -> dict[str, torch.Tensor]:
    made: list[Recording] = []

    def make(_: Any, net: nn.Module) -> Recording:
        made.append(Recording(spec, net))
        return made[0]

    plain_loop(spec, make_optimizer=make)
    return made[0].averages()


def ema_of(spec: RunSpec) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(spec)[-1] / "weights-ema" / "model.safetensors")


def averages_of_noted_weights(spec: RunSpec) -> dict[str, torch.Tensor]:
    """By the formula, from what the run itself had after each step."""
    files = [folder_of(spec) / f"weights-{step}.safetensors" for step in range(1, STEPS + 1)]
    weights = [load_file(file) for file in files]
    shares = [(1 - DECAY) * DECAY ** (STEPS - step) for step in range(1, STEPS + 1)]
    return {
        n: sum(s * w[n].double() for s, w in zip(shares, weights, strict=True)) / sum(shares)
        for n in weights[0]
    }


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name].double(), want[name], rtol=1e-5, atol=1e-7)


def assert_close(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    """Of runs of their own: in its first steps Adam turns rounding of small gradients into parts
    of a step (lr 3e-3)."""
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name].double(), want[name], rtol=1e-3, atol=1e-4)


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(checkpoint)}/{name}": tensor
        for path in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.slow
def test_the_average_is_that_of_all_weights_so_far_and_survives_a_resume(make_spec: Any) -> None:
    specs = [make_spec(f"ema{z}", BASE | {"engine.zero_stage": z}) for z in range(4)]
    without = make_spec("ema-none", {"loop.steps": STEPS, "loop.valid_every": 3})
    halves = [make_spec("ema-halves", BASE | {"loop.steps": steps}) for steps in (3, STEPS)]
    patches = dict.fromkeys(range(3), "noted_weights")
    for outcome in run_ranks([*specs, without, *halves], patches=patches):
        assert outcome.ok, outcome.printed
    for spec in specs[:3]:
        assert_same(ema_of(spec), averages_of_noted_weights(spec))
    want = averages_of_plain_loop(without)
    for spec in specs:
        assert_close(ema_of(spec), want)
    assert records(specs[2], "train/loss") == records(without, "train/loss")
    assert records(specs[2], "eval/valid/loss") == records(without, "eval/valid/loss")
    whole, resumed = (state_of(checkpoints(s)[-1]) for s in (specs[2], halves[1]))
    assert any(name.endswith("ema") for name in whole)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert_loadable(specs[3], without)


def assert_loadable(spec: RunSpec, without: RunSpec) -> None:
    loaded = load_weights(folder_of(spec) / "weights-ema")
    assert loaded.folder == checkpoints(spec)[-1] / "weights-ema"
    ours = records(spec, "eval/valid/ema_loss")
    assert valid_loss(spec, loaded.model) == pytest.approx(ours[-1], rel=1e-5)
    assert len(ours) == 2
    assert ours != pytest.approx(records(spec, "eval/valid/loss"), rel=1e-3)
    with pytest.raises(CheckpointError, match=r"without optim\.ema"):
        load_weights(folder_of(without) / "weights-ema")


@pytest.mark.long
def test_the_average_goes_on_with_other_workers_another_stage_and_in_bf16(make_spec: Any) -> None:
    """Saved by two workers at stage 2, continued by three at stage 3 and by one at stage 1."""
    bf16 = {"engine.precision": "bf16"}
    whole = [make_spec("ema-whole", BASE), make_spec("ema-bf16", BASE | bf16)]
    names = ("ema-three", "ema-one")
    cut = [make_spec(name, BASE | {"loop.steps": 3}) for name in names]
    want = averages_of_plain_loop(whole[0])
    for outcome in run_ranks([*whole, *cut]):
        assert outcome.ok, outcome.printed
    for name, workers, stage in (("ema-three", 3, 3), ("ema-one", 1, 1)):
        spec = make_spec(name, BASE | {"workers.count": workers, "engine.zero_stage": stage})
        (outcome,) = run_ranks([spec])
        assert outcome.ok, outcome.printed
        assert_close(ema_of(spec), want)
    dtypes = {t.dtype for t in ema_of(whole[1]).values()}
    assert dtypes == {torch.bfloat16}
    masters = state_of(checkpoints(whole[1])[-1])
    assert {t.dtype for name, t in masters.items() if name.endswith("ema")} == {torch.float32}
