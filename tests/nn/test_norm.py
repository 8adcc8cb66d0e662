"""Norms against x-transformers' own modules with the same parameters."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from x_transformers import x_transformers as theirs

from xtdist.config import from_mapping, to_mapping
from xtdist.nn.linear import initialize
from xtdist.nn.norm import (
    AdaptiveLayerNormConfig,
    AdaptiveRMSNormConfig,
    DerfConfig,
    DynamicTanhConfig,
    LayerNormConfig,
    RMSNormConfig,
    ScaleNormConfig,
    SimpleRMSNormConfig,
)

DIM = 8
TINY = 1e-24  # x-transformers divides by the length alone
PLAIN: list[tuple[Any, Any, dict[str, str]]] = [
    (LayerNormConfig, theirs.LayerNorm, {"gamma": "gain"}),
    (RMSNormConfig, theirs.RMSNorm, {"g": "gain"}),
    (ScaleNormConfig, theirs.ScaleNorm, {"g": "gain"}),
    (
        DynamicTanhConfig,
        theirs.DynamicTanh,
        {"pre_tanh_scale": "alpha", "gamma": "gain", "beta": "bias"},
    ),
    (
        DerfConfig,
        theirs.Derf,
        {"alpha": "alpha", "s": "shift", "gamma": "gain", "beta": "bias"},
    ),
]
CONFIGS = [
    LayerNormConfig(),
    RMSNormConfig(unit_offset=False),
    SimpleRMSNormConfig(),
    ScaleNormConfig(),
    DynamicTanhConfig(init_alpha=0.7),
    DerfConfig(),
    AdaptiveLayerNormConfig(),
    AdaptiveRMSNormConfig(dim_condition=5),
]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def copy_weights(ours: nn.Module, oracle: nn.Module, names: dict[str, str]) -> None:
    """Random values in both."""
    for seed, (theirs_name, ours_name) in enumerate(names.items()):
        target = ours.get_parameter(ours_name)
        value = noise(*target.shape, seed=seed + 10)
        with torch.no_grad():
            target.copy_(value)
            oracle.get_parameter(theirs_name).copy_(
                value.view_as(oracle.get_parameter(theirs_name))
            )
    assert len(names) == len(list(ours.parameters())) == len(list(oracle.parameters()))


@pytest.mark.parametrize("unit_offset", [True, False])
@pytest.mark.parametrize(("config", "oracle", "names"), PLAIN)
def test_a_norm_equals_x_transformers(
    config: Any, oracle: Any, names: dict[str, str], unit_offset: bool
) -> None:
    ours = config(unit_offset=unit_offset).build(DIM)
    peer = oracle(DIM, unit_offset=unit_offset)
    x = noise(2, 5, DIM) * 3 + 1
    torch.testing.assert_close(ours(x), peer(x))
    copy_weights(ours, peer, names)
    torch.testing.assert_close(ours(x), peer(x))


def test_simple_rmsnorm_equals_x_transformers() -> None:
    x = noise(2, 5, DIM) * 1e-4
    ours = SimpleRMSNormConfig(eps=TINY).build(DIM)
    torch.testing.assert_close(ours(x), theirs.SimpleRMSNorm(DIM)(x))
    assert ours(torch.zeros(1, DIM)).abs().sum() == 0


@pytest.mark.parametrize(
    ("config", "oracle"),
    [
        (AdaptiveLayerNormConfig(dim_condition=6), theirs.AdaptiveLayerNorm),
        (AdaptiveRMSNormConfig(dim_condition=6, eps=TINY), theirs.AdaptiveRMSNorm),
    ],
)
def test_an_adaptive_norm_equals_x_transformers(config: Any, oracle: Any) -> None:
    ours, peer = config.build(DIM), oracle(DIM, dim_condition=6)
    x, by_sample, by_token = noise(2, 5, DIM), noise(2, 1, 6), noise(2, 5, 6)
    torch.testing.assert_close(ours(x, by_token), peer(x, condition=by_token))
    copy_weights(ours, peer, {"to_gamma.weight": "to_gain.weight"})
    for condition in (by_sample, by_token):
        torch.testing.assert_close(ours(x, condition), peer(x, condition=condition))
    torch.testing.assert_close(ours(x, by_sample), peer(x, condition=by_sample[:, 0]))


@pytest.mark.parametrize("shape", [(2, 6), (1, 1, 6), (2, 4, 6), (2, 1, 5)])
def test_a_condition_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    norm = AdaptiveRMSNormConfig(dim_condition=6).build(DIM)
    with pytest.raises(ValueError, match=r"condition: got shape .*\(2, 1, 6\)"):
        norm(noise(2, 5, DIM), noise(*shape))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_a_norm_is_initialized_copied_and_read_from_plain_data(config: Any) -> None:
    again = from_mapping(type(config), to_mapping(config))
    with torch.device("meta"):
        norm = again.build(DIM)
    norm = norm.to_empty(device="cpu")
    for weight in norm.parameters():
        nn.init.constant_(weight, float("nan"))
    initialize(norm, torch.Generator().manual_seed(0))
    assert norm.needs_condition == config.needs_condition == config.kind.startswith("adaptive")
    inputs = [noise(2, 3, DIM)]
    if config.needs_condition:
        inputs.append(noise(2, 1, config.dim_condition or DIM))
    fresh = config.build(DIM)(*inputs)
    for same in (norm, copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert torch.equal(same(*inputs), fresh)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_every_parameter_of_a_norm_has_a_gradient_and_nothing_breaks_the_graph(config: Any) -> None:
    norm = config.build(DIM)
    x = noise(2, 3, DIM).requires_grad_()
    inputs = [x, noise(2, 3, config.dim_condition or DIM)] if config.needs_condition else [x]
    torch._dynamo.reset()
    torch.compile(norm, fullgraph=True, backend="aot_eager")(*inputs).square().sum().backward()
    for weight in (x, *norm.parameters()):
        assert weight.ndim > 0  # DeepSpeed can't broadcast a parameter without dimensions
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
