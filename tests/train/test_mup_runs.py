"""muP in runs: each parameter has its own rate at every ZeRO stage, and what is saved says so."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from plain import plain_loop, valid_loss
from ranks import run_ranks
from runs import folder_of, records
from torch import nn

from xtdist.checkpoint.weights import load_weights
from xtdist.train import RunSpec

GROWTH = 4
HIDDEN = ("projection.weight", "to_out.weight", "proj_in.weight", "proj_out.weight")


class ByHand:
    """torch's AdamW with the rate of hidden matrices divided by GROWTH; rate times decay stays."""

    def __init__(self, spec: RunSpec, net: nn.Module) -> None:
        optim = spec.optim
        named = dict(net.named_parameters())
        hidden = [p for n, p in named.items() if n.endswith(HIDDEN)]
        self.factors = [1 / GROWTH, 1.0, 1.0]
        rest = [p for n, p in named.items() if not n.endswith(HIDDEN) and n != "head.weight"]
        groups = [
            {"params": hidden, "weight_decay": optim.weight_decay * GROWTH},
            {"params": [named["head.weight"]], "weight_decay": optim.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, betas=optim.betas, eps=optim.eps)
        self.param_groups, self.zero_grad = self.optimizer.param_groups, self.optimizer.zero_grad

    def step(self) -> None:
        for group, factor in zip(self.param_groups, self.factors, strict=True):
            group["lr"] *= factor
        self.optimizer.step()


@pytest.mark.slow
def test_runs_train_as_in_a_plain_loop_with_the_rates_by_hand(make_spec: Any) -> None:
    mup = {"base_width": 64 // GROWTH, "base_dim_head": 4}
    model = {"dim": 64, "depth": 2, "heads": 4, "attention": {"dim_head": 16}, "mup": mup}
    changes = {
        "model": model,
        "optim.weight_decay": 0.2,
        "workers.count": 2,
        "loop.steps": 4,
        "loop.valid_every": 4,
    }
    specs = [make_spec(f"mup-{z}", changes | {"engine.zero_stage": z}) for z in (0, 2, 3)]
    want = plain_loop(specs[0], make_optimizer=lambda _, net: ByHand(specs[0], net))
    for spec, outcome in zip(specs, run_ranks(specs), strict=True):
        assert outcome.ok, outcome.printed
        for key, values in want.items():
            tolerance = 1e-6 if "loss" in key else 1e-4
            assert records(spec, key) == pytest.approx(values, rel=tolerance), (spec.name, key)
        loaded = load_weights(folder_of(spec)).model  # with its scales, as for serving
        assert loaded.config.mup == spec.model.mup
        assert valid_loss(spec, loaded) == pytest.approx(want["eval/valid/loss"][-1], rel=1e-6)
        whole = json.loads((folder_of(spec) / "in_force.json").read_text())
        assert f"x{1 / GROWTH:g}" in json.dumps(whole)
