"""Feed-forward layers against x-transformers' own with the same weights."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from x_transformers.x_transformers import FeedForward as Theirs

from xtdist.config import ConfigError
from xtdist.nn.feedforward import FeedForward, GLUConfig, MLPConfig, build_feedforward
from xtdist.nn.linear import initialize

DIM = 6
MLP: dict[str, Any] = {"bias_in": True, "bias_out": True}
GLU: dict[str, Any] = {**MLP, "mult": 2.0}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "mlp": (MLPConfig(**MLP), {}),
    "no_bias": (MLPConfig(), {"no_bias": True}),
    "silu": (MLPConfig(activation="silu", **MLP), {"swish": True}),
    "relu_squared": (MLPConfig(activation="relu_squared", **MLP), {"relu_squared": True}),
    "solu": (MLPConfig(activation="solu", **MLP), {"solu": True}),
    "post_act_norm": (MLPConfig(post_act_norm=True, **MLP), {"post_act_ln": True}),
    "solu_post_act_norm": (
        MLPConfig(activation="solu", post_act_norm=True, **MLP),
        {"solu": True, "post_act_ln": True},
    ),
    "softclamp": (MLPConfig(softclamp=0.5, **MLP), {"softclamp_value": 0.5}),
    "dropouts": (
        MLPConfig(dropout=0.3, dropout_out=0.2, **MLP),
        {"dropout": 0.3, "sublayer_dropout": 0.2},
    ),
    "glu": (
        GLUConfig(activation="gelu", multiple_of=1, **GLU),
        {"glu": True, "mult": 2},
    ),
    "glu_no_bias_out": (
        GLUConfig(multiple_of=1, bias_in=True, mult=2.0),
        {"glu": True, "swish": True, "mult": 2, "no_bias": True},
    ),
    "glu_relu_squared": (
        GLUConfig(activation="relu_squared", multiple_of=1, **GLU),
        {"glu": True, "relu_squared": True, "mult": 2},
    ),
    "glu_solu": (
        GLUConfig(activation="solu", multiple_of=1, **GLU),
        {"glu": True, "solu": True, "mult": 2},
    ),
    "glu_mult_bias": (
        GLUConfig(mult_bias=True, multiple_of=1, **GLU),
        {"glu": True, "swish": True, "glu_mult_bias": True, "mult": 2},
    ),
    "glu_softclamp_silu": (
        GLUConfig(gate_softclamp=0.5, up_softclamp=0.7, multiple_of=1, **GLU),
        {
            "glu": True,
            "swish": True,
            "glu_softclamp": True,
            "glu_gate_softclamp_value": 0.5,
            "glu_up_softclamp_value": 0.7,
            "mult": 2,
        },
    ),
    "glu_softclamp_gelu": (
        GLUConfig(activation="gelu", gate_softclamp=4.0, up_softclamp=25.0, multiple_of=1, **GLU),
        {"glu": True, "glu_softclamp": True, "mult": 2},
    ),
    "glu_post_act_norm": (
        GLUConfig(post_act_norm=True, multiple_of=1, **GLU),
        {"glu": True, "swish": True, "post_act_ln": True, "mult": 2},
    ),
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def our_name(name: str) -> str:
    """Where x-transformers' parameter stands in ours."""
    if name.endswith("mult_bias"):
        return "mult_bias"
    if name.endswith("gamma"):
        return "post_act_norm.gain" if name == "ff.1.gamma" else "act_norm.gain"
    first = name.startswith("ff.0.")
    return ("proj_in." if first else "proj_out.") + name.rsplit(".", 1)[1]


def load(ours: FeedForward, oracle: nn.Module) -> None:
    values = {
        name: noise(*p.shape, seed=i) for i, (name, p) in enumerate(oracle.named_parameters())
    }
    oracle.load_state_dict(values)
    ours.load_state_dict({our_name(name): value for name, value in values.items()})


@pytest.mark.parametrize("name", CASES)
def test_a_feed_forward_layer_equals_x_transformers(name: str) -> None:
    config, keywords = CASES[name]
    ours, oracle = FeedForward(DIM, config), Theirs(DIM, **keywords)
    load(ours, oracle)
    x = noise(2, 5, DIM)
    torch.testing.assert_close(ours.eval()(x), oracle.eval()(x), rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    got = ours.train()(x)
    torch.manual_seed(0)
    torch.testing.assert_close(got, oracle.train()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_feed_forward_layer_has_all_gradients_one_graph_and_copies(name: str) -> None:
    layer = FeedForward(DIM, CASES[name][0]).eval()
    x = noise(2, 3, DIM)
    torch._dynamo.reset()
    out = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    out.square().sum().backward()
    for weight in layer.parameters():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
    for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(same(x), layer(x))


def test_a_layer_with_zero_output_starts_as_zero_and_learns() -> None:
    layer = FeedForward(DIM, MLPConfig(zero_init_output=True, bias_in=True), init_gain=0.5)
    initialize(layer, torch.Generator().manual_seed(0))
    assert layer(noise(1, 2, DIM)).abs().sum() == 0
    layer(noise(1, 2, DIM)).sum().backward()
    assert layer.proj_out.weight.grad is not None
    assert layer.proj_out.weight.grad.abs().sum() > 0


def test_the_init_gain_scales_the_output_projection_alone() -> None:
    layer = FeedForward(300, MLPConfig(mult=1.0), init_gain=0.1)
    assert layer.proj_in.weight.std().item() == pytest.approx(1 / math.sqrt(900), rel=0.02)
    assert layer.proj_out.weight.std().item() == pytest.approx(0.1 / math.sqrt(900), rel=0.02)


def test_a_layer_built_without_memory_is_filled_by_initialize() -> None:
    config = GLUConfig(mult_bias=True, activation="solu", post_act_norm=True, bias_in=True)
    with torch.device("meta"):
        layer = build_feedforward(DIM, config)
    layer = layer.to_empty(device="cpu")
    for weight in layer.parameters():
        nn.init.constant_(weight, math.nan)
    initialize(layer)
    assert isinstance(layer, FeedForward)
    assert layer(noise(1, 2, DIM)).isfinite().all()
    assert torch.equal(layer.mult_bias, torch.ones(64))  # type: ignore[arg-type]


def test_a_clamped_gate_needs_an_activation_that_has_one() -> None:
    with pytest.raises(ConfigError, match=r"gate_softclamp: got 4.0 with activation 'relu'"):
        GLUConfig(activation="relu", gate_softclamp=4.0)
