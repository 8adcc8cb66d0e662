"""The mode that modules are in while a model decodes."""

from __future__ import annotations

import pytest
from torch import nn

from xtdist.decode.runner import evaluating


def nested() -> nn.Module:
    inner = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(inner, nn.ReLU()), inner)
    model.register_module("nothing", None)
    return model


def modes(model: nn.Module) -> list[bool]:
    return [m.training for m in model.modules()]


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("trains", [(), (0, 3), (1, 2, 3), (0, 1, 2, 3, 4, 5)])
def test_all_modules_evaluate_and_are_in_their_mode_afterwards(
    root: bool, trains: tuple[int, ...]
) -> None:
    model = nested().eval()
    for number, module in enumerate(model.modules()):
        module.training = root if number == 0 else number in trains
    before = modes(model)
    assert before[0] == root
    with evaluating(model):
        assert not any(modes(model))
    assert modes(model) == before
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        raise RuntimeError("inside")
    assert modes(model) == before
