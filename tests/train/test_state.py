"""What a resumed optimizer takes from the checkpoint, and what from the config."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from xtdist.config import CheckpointError
from xtdist.train.state.flats import Flat
from xtdist.train.state.pieces import Piece


def flat_of(weight: nn.Parameter, optimizer: torch.optim.Optimizer) -> Flat:
    piece = Piece("weight", tuple(weight.shape), 0, 0, weight.numel())
    return Flat(
        pieces=(piece,),
        numel=weight.numel(),
        master=weight,
        optimizer=optimizer,
        group=optimizer.param_groups[0],
        replicated=True,
    )


def stepped(weight: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (weight.sin() * 3).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(2, 3), (1,), ()])
@pytest.mark.parametrize("fused", [False, True])
def test_a_fresh_optimizer_filled_from_another_steps_like_it(
    shape: tuple[int, ...], fused: bool
) -> None:
    ours, theirs = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.zeros(shape))
    saved = torch.optim.AdamW([ours], lr=0.5, fused=fused)
    stepped(ours, saved, 3)
    now = torch.optim.AdamW([theirs], lr=0.5, fused=fused)
    a, b = flat_of(ours, saved), flat_of(theirs, now)
    assert a.scalars() == {"step": 3.0}
    for key, values in a.tensors().items():
        b.write(key, values.clone())
    b.write_scalar("step", 3.0)
    stepped(ours, saved, 2)
    stepped(theirs, now, 2)
    assert b.scalars() == {"step": 5.0}
    for key, values in a.tensors().items():
        assert torch.equal(values, b.tensors()[key])


def test_settings_stay_the_configs() -> None:
    weight = nn.Parameter(torch.ones(3))
    now: Any = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.01, betas=(0.9, 0.95))
    flat = flat_of(weight, now)
    flat.write("exp_avg", torch.arange(3.0))
    group = now.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.01, (0.9, 0.95))
    assert group["params"] == [weight]
    assert torch.equal(now.state[weight]["exp_avg"], torch.arange(3.0))


def test_a_state_that_has_no_value_per_element_is_refused() -> None:
    weight = nn.Parameter(torch.ones(4, 6))
    factored = torch.optim.Adafactor([weight])
    stepped(weight, factored, 1)
    with pytest.raises(CheckpointError, match="can't be cut into slices"):
        flat_of(weight, factored).tensors()
