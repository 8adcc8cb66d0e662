"""Muon in runs: the same update however ZeRO cuts the matrices, as if nothing cut them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from muon_reference import ReferenceMuon
from plain import plain_loop
from ranks import Outcome, run_ranks
from runs import records
from torch import nn

from xtdist.config import ConfigError
from xtdist.optim import MuonConfig, build_optimizer
from xtdist.train.optimizer import check_muon

MUON = {
    "kind": "muon",
    "lr": 2e-2,
    "adamw_lr": 3e-3,
    "weight_decay": 0.1,
    "scale": "original",
    "ns_precision": "fp32",
    "grad_clip": 0.5,
    "schedule": {"kind": "constant", "warmup_steps": 2},
}


def assert_like_reference(specs: list[Any], *then: Any) -> list[Outcome]:
    """What became of those that come ``then``."""
    outcomes = run_ranks([*specs, *then])
    want = plain_loop(specs[0], make_optimizer=ReferenceMuon)
    assert max(want["train/grad_norm"]) > 0.5  # it clips
    for spec, outcome in zip(specs, outcomes, strict=False):
        assert outcome.ok, outcome.printed
        for key, values in want.items():
            tolerance = 2e-6 if "loss" in key else 1e-4
            assert records(spec, key) == pytest.approx(values, rel=tolerance), (spec.name, key)
    first, last = want["train/loss"][0], want["train/loss"][-1]
    assert last < first - 0.5
    return outcomes[len(specs) :]


@pytest.mark.slow
def test_losses_are_those_of_an_uncut_muon_at_any_stage(make_spec: Any) -> None:
    """Two workers; stages 1 and 2 cut a few matrices, stage 3 all of them."""
    base = {"optim": MUON, "loop.steps": 6, "loop.valid_every": 3}
    specs = [make_spec(f"muon{z}", base | {"engine.zero_stage": z}) for z in range(4)]
    four = {"batch.micro_batch_tokens": 16}
    specs += [make_spec(f"muon-acc{z}", base | four | {"engine.zero_stage": z}) for z in (2, 3)]
    moved = MUON | {"groups": [{"match": "*proj_in*", "optimizer": "adamw"}]}
    again = base | {"optim": moved, "loop.steps": 8}
    later = [make_spec(f"muon{z}", again | {"engine.zero_stage": z}) for z in (0, 1, 3)]
    for outcome in assert_like_reference(specs, *later):
        assert outcome.same_error.startswith("CheckpointError: ")
        assert "are updated by adamw now (optim.groups)" in outcome.same_error


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 3])
def test_losses_are_those_of_an_uncut_muon_with_any_number_of_workers(
    make_spec: Any, workers: int
) -> None:
    base = {"optim": MUON, "workers.count": workers, "loop.steps": 8}
    specs = [make_spec(f"muon{z}-{workers}", base | {"engine.zero_stage": z}) for z in range(4)]
    assert_like_reference(specs)


def test_a_muon_that_has_not_updated_every_matrix_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Linear(4, 4, bias=False)
    whole = SimpleNamespace(parameter=net.weight, sizes=(2, 2), axis=0)
    optimizer = build_optimizer(MuonConfig(), net, [whole])
    engine = SimpleNamespace(optimizer=optimizer, device="cpu", zero_optimization_stage=lambda: 0)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda count: count.mul_(3))
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    with pytest.raises(RuntimeError, match="should have updated 6 matrices in 1 steps, and did 0"):
        check_muon(engine, steps=1)
    net.weight.grad = torch.ones(4, 4)
    optimizer.step()
    check_muon(engine, steps=1)


def test_muon_with_its_state_in_files_is_refused(make_spec: Any) -> None:
    nvme = {"kind": "nvme", "path": "/tmp"}
    with pytest.raises(ConfigError, match=r"optim\.kind: got 'muon' with engine\.offload"):
        make_spec("x", {"optim": MUON, "engine.zero_stage": 3, "engine.offload_optimizer": nvme})
