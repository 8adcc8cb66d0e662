"""Rotary and polar positions against x-transformers, transformers and their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as hf_rotate
from x_transformers.x_transformers import (
    PolarEmbedding,
    RotaryEmbedding,
    apply_polar_pos_emb,
    apply_rotary_pos_emb,
)

from xtdist.config import ConfigError
from xtdist.nn.position.config import Llama3Config, PolarConfig, RotaryConfig, YarnConfig
from xtdist.nn.position.geometry import PositionGeometry
from xtdist.nn.position.polar import PolarPosition
from xtdist.nn.position.rotary import rotary_tables, rotate


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def turned(x: Tensor, pos: Tensor, config: RotaryConfig) -> Tensor:
    return rotate(x, config.tables(pos, dim_head=x.shape[-1]).query)


@pytest.mark.parametrize("dim", [4, 8, None])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"interpolation": 4.0}, {"interpolation_factor": 4.0}),
        ({"theta_rescale": 3.0}, {"base_rescale_factor": 3.0}),
        (
            {"interpolation": 2.0, "theta_rescale": 3.0, "theta": 500.0},
            {"interpolation_factor": 2.0, "base_rescale_factor": 3.0, "base": 500.0},
        ),
        ({"xpos_scale_base": 16}, {"use_xpos": True, "scale_base": 16}),
    ],
)
def test_queries_and_keys_are_turned_as_in_x_transformers(
    dim: int | None, ours: dict[str, float], theirs: dict[str, float]
) -> None:
    n, pos = 40, torch.arange(40)
    x = noise(2, 3, n, 8)
    upstream = RotaryEmbedding(dim or 8, **theirs)  # type: ignore[arg-type]
    angles, scale = upstream(pos)
    config = RotaryConfig(dim=dim, xpos_centre=n // 2, **ours)  # type: ignore[arg-type]
    tables = config.tables(pos[None], dim_head=8)
    torch.testing.assert_close(
        rotate(x, tables.query), apply_rotary_pos_emb(x, angles, scale), atol=2e-6, rtol=1e-5
    )
    torch.testing.assert_close(
        rotate(x, tables.key), apply_rotary_pos_emb(x, angles, scale**-1), atol=2e-6, rtol=1e-5
    )


def test_no_score_depends_on_the_centre_of_xpos() -> None:
    q, k, pos = noise(1, 2, 9, 8), noise(1, 2, 9, 8, seed=1), torch.arange(9)[None]

    def scores(centre: int) -> Tensor:
        config = RotaryConfig(xpos_scale_base=7, xpos_centre=centre)
        tables = config.tables(pos, dim_head=8)
        return rotate(q, tables.query) @ rotate(k, tables.key).mT

    torch.testing.assert_close(scores(0), scores(5), atol=1e-4, rtol=1e-4)
    plain = turned(q, pos, RotaryConfig()) @ turned(k, pos, RotaryConfig()).mT
    assert (scores(0) - plain).abs().max() > 0.1


def test_xpos_counts_from_the_middle_of_the_positions_it_is_given() -> None:
    q, k = noise(1, 2, 9, 8), noise(1, 2, 9, 8, seed=1)
    config, pos = RotaryConfig(xpos_scale_base=7), torch.arange(9)[None]

    def scores(shift: int, around: Tensor | None) -> Tensor:
        tables = config.tables(pos + shift, dim_head=8, around=around)
        return rotate(q, tables.query) @ rotate(k, tables.key).mT

    for shift in (0, 5000):
        got = scores(shift, pos + shift)
        torch.testing.assert_close(got, scores(0, None), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("dtype", "farthest"), [(torch.float32, 387), (torch.bfloat16, 387), (torch.float16, 30)]
)
def test_xpos_refuses_positions_that_a_type_can_not_tell(dtype: torch.dtype, farthest: int) -> None:
    config, x = RotaryConfig(xpos_scale_base=7), noise(1, 2, 1, 8).to(dtype)
    for pos in (farthest, -farthest):
        table = config.tables(torch.tensor([[pos]]), dim_head=8)
        for turned_x in (rotate(x, table.query), rotate(x, table.key)):
            assert turned_x.isfinite().all()
            assert turned_x.abs().min() > 0
    with pytest.raises(ValueError, match=f"can hold {farthest}"):
        rotate(x, config.tables(torch.tensor([[farthest + 1]]), dim_head=8).query)


def hf_frequencies(kind: str, parameters: dict[str, float], theta: float) -> tuple[Tensor, float]:
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=1,
        head_dim=64,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": kind, "rope_theta": theta, **parameters},
    )
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))


SCALINGS = [
    YarnConfig(factor=4.0, original_max_len=1024),
    YarnConfig(factor=16.0, original_max_len=4096, beta_fast=8.0, beta_slow=2.0),
    YarnConfig(factor=2.0, original_max_len=64, attention_factor=1.3),
    YarnConfig(factor=1.0, original_max_len=64),
    Llama3Config(),
    Llama3Config(factor=32.0, low_freq_factor=2.0, high_freq_factor=3.0),
    Llama3Config(factor=2.0, original_max_len=128),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_scaled_rotations_are_those_of_transformers(
    scaling: YarnConfig | Llama3Config, theta: float
) -> None:
    parameters: dict[str, float] = {
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_max_len,
    }
    if isinstance(scaling, YarnConfig):
        parameters |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        if scaling.attention_factor is not None:
            parameters["attention_factor"] = scaling.attention_factor
    else:
        parameters |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    frequency, amplitude = hf_frequencies(scaling.kind, parameters, theta)
    pos = torch.tensor([[0, 1, 2, 50, 1000]])
    angle = pos[..., None].float() * frequency
    cos, sin = (torch.cat((t, t), dim=-1) * amplitude for t in (angle.cos(), angle.sin()))
    q, k = noise(2, 3, 5, 64), noise(2, 3, 5, 64, seed=1)
    want_q, want_k = hf_rotate(q, k, cos, sin)
    config = RotaryConfig(theta=theta, layout="halves", scaling=scaling)
    torch.testing.assert_close(turned(q, pos, config), want_q, atol=3e-4, rtol=1e-4)
    torch.testing.assert_close(turned(k, pos, config), want_k, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("dim", [4, 8])
def test_the_halves_layout_is_the_interleaved_one_with_channels_moved(dim: int) -> None:
    x, pos = noise(2, 3, 6, 8), torch.arange(6)[None]
    order = torch.arange(8)
    order[:dim] = torch.arange(dim).reshape(-1, 2).T.reshape(-1)  # even channels, then odd ones
    want = turned(x, pos, RotaryConfig(dim=dim))[..., order]
    got = turned(x[..., order], pos, RotaryConfig(dim=dim, layout="halves"))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_unrotated_channels_and_heads_stay_bit_for_bit(layout: str) -> None:
    x, pos = noise(2, 4, 6, 8), torch.arange(6)[None] + 100
    for head_dim, dim in ((8, 4), (7, 2)):
        part = x[..., :head_dim]
        config = RotaryConfig(dim=dim, layout=layout, heads=3)  # type: ignore[arg-type]
        got = turned(part, pos, config)
        assert torch.equal(got[:, :1], part[:, :1])
        assert torch.equal(got[..., dim:], part[..., dim:])
        assert not torch.isclose(got[:, 1:, :, :dim], part[:, 1:, :, :dim]).all(-1).any()
        every = RotaryConfig(dim=dim, layout=layout)  # type: ignore[arg-type]
        torch.testing.assert_close(got[:, 1:], turned(part[:, 1:], pos, every))


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_one_row_of_positions_serves_every_sample(layout: str) -> None:
    x, pos = noise(3, 2, 5, 8), torch.arange(5)[None] * 7
    config = RotaryConfig(layout=layout)  # type: ignore[arg-type]
    assert torch.equal(turned(x, pos, config), turned(x, pos.expand(3, -1), config))


def test_any_view_can_be_rotated() -> None:
    pos, config = torch.arange(6)[None], RotaryConfig()
    wide = noise(2, 6, 3, 11)
    for view in (
        wide[..., 1:9].transpose(1, 2),  # odd offset and strides
        noise(2, 3, 8, 6).transpose(2, 3),  # channels are not neighbours
        noise(1, 1, 1, 8).expand(2, 3, 6, 8),
    ):
        want = turned(view.clone(memory_format=torch.contiguous_format), pos, config)
        torch.testing.assert_close(turned(view, pos, config), want)


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_the_gradient_of_a_rotation_is_the_rotation_back(layout: str) -> None:
    x, pos = noise(2, 3, 5, 8).requires_grad_(), torch.arange(5)[None]
    config = RotaryConfig(layout=layout, dim=6)  # type: ignore[arg-type]
    grad = noise(2, 3, 5, 8, seed=1)
    turned(x, pos, config).backward(grad)
    torch.testing.assert_close(x.grad, turned(grad, -pos, config))


def test_a_compiled_rotation_gives_the_same() -> None:
    x = noise(2, 3, 5, 8)
    for config in (
        RotaryConfig(dim=4),
        RotaryConfig(layout="halves", xpos_scale_base=512),
        RotaryConfig(scaling=YarnConfig(factor=4.0, original_max_len=64), heads=2),
    ):
        compiled = torch.compile(turned, fullgraph=True, backend="aot_eager")
        pos = torch.arange(5)[None]
        torch.testing.assert_close(compiled(x, pos, config), turned(x, pos, config))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_input_is_turned_by_exact_angles(dtype: torch.dtype) -> None:
    x, pos = noise(1, 2, 4, 8).to(dtype), torch.tensor([[257, 3001, 40_001, 100_003]])
    for config in (RotaryConfig(), RotaryConfig(layout="halves", dim=4)):
        got = turned(x, pos, config)
        assert got.dtype == dtype
        assert torch.equal(got, turned(x.float(), pos, config).to(dtype))


@settings(max_examples=50, deadline=None)
@given(
    i=st.integers(0, 500),
    j=st.integers(0, 500),
    shift=st.integers(0, 500),
    layout=st.sampled_from(["interleaved", "halves"]),
    xpos=st.sampled_from([None, 64]),
    dim=st.sampled_from([2, 4, 8]),
)
def test_scores_depend_on_the_distance_alone(
    i: int, j: int, shift: int, layout: str, xpos: int | None, dim: int
) -> None:
    i, j = max(i, j), min(i, j)
    q, k = noise(1, 1, 1, 8), noise(1, 1, 1, 8, seed=1)
    config = RotaryConfig(layout=layout, xpos_scale_base=xpos, dim=dim)  # type: ignore[arg-type]

    def score(a: int, b: int) -> float:
        query = config.tables(torch.tensor([[a]]), dim_head=8).query
        key = config.tables(torch.tensor([[b]]), dim_head=8).key
        return float((rotate(q, query) * rotate(k, key)).sum())

    assert score(i, j) == pytest.approx(score(i + shift, j + shift), rel=2e-3, abs=2e-3)


def polar(*, kv_heads: int = 4, uniform: bool = False) -> PolarPosition:
    geometry = PositionGeometry(dim=32, heads=4, kv_heads=kv_heads, dim_head=8, causal=True)
    return PolarConfig(uniform_bias=uniform).build(geometry)


def test_polar_positions_are_those_of_x_transformers() -> None:
    upstream, ours = PolarEmbedding(8, 4), polar()
    with torch.no_grad():
        upstream.learned_bias.uniform_(-8, 2)  # some of it outside of [−2π, 0]
        ours.bias.copy_(upstream.learned_bias)
    pos, q, k = torch.arange(30), noise(1, 4, 30, 8), noise(1, 4, 30, 8, seed=1)
    angles, bias = upstream(pos)
    table = ours.table(pos[None])
    torch.testing.assert_close(
        ours.queries(q, table), apply_polar_pos_emb(q, angles), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        ours(k, table), apply_polar_pos_emb(k, angles + bias), atol=2e-5, rtol=1e-5
    )


def test_a_polar_score_is_a_sum_of_cosines() -> None:
    ours = polar(kv_heads=1, uniform=True)
    assert ours.bias.min() >= -2 * math.pi
    assert ours.bias.max() <= 0
    assert ours.bias.std() > 0.5
    q, k, i, j = noise(1, 1, 1, 8), noise(1, 1, 1, 8, seed=1), 700, 650
    query = ours.queries(q, ours.table(torch.tensor([[i]])))
    key = ours(k, ours.table(torch.tensor([[j]])))
    angle = (i - j) * 10000.0 ** -(torch.arange(8).double() / 8) - ours.bias.double()
    want = (torch.nn.functional.softplus(q) * torch.nn.functional.softplus(k) * angle.cos()).sum()
    torch.testing.assert_close((query * key).sum().double(), want, atol=1e-3, rtol=1e-3)


def test_a_cast_to_bf16_keeps_the_angles_of_polar_positions() -> None:
    pos = torch.arange(3000)[None]
    want = polar().table(pos)
    got = polar().bfloat16().table(pos)
    assert torch.equal(got.cos, want.cos)
    assert torch.equal(got.sin, want.sin)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"dim": 3}, "dim"),
        ({"interpolation": 0.5}, "interpolation"),
        ({"theta_rescale": 2.0, "dim": 2}, "theta_rescale"),
        ({"interpolation": 2.0, "scaling": Llama3Config()}, "scaling"),
        ({"theta_rescale": 2.0, "scaling": Llama3Config()}, "scaling"),
        ({"theta": 0.5, "scaling": YarnConfig(factor=2.0, original_max_len=8)}, "theta"),
    ],
)
def test_rotations_that_make_no_sense_are_refused(given: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"^position\.{named}: "):
        RotaryConfig(**given)  # type: ignore[arg-type]


def test_scalings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"factor: got 0\.5"):
        YarnConfig(factor=0.5, original_max_len=8)
    with pytest.raises(ConfigError, match="beta_fast"):
        YarnConfig(factor=2.0, original_max_len=8, beta_fast=1.0)
    with pytest.raises(ConfigError, match="high_freq_factor"):
        Llama3Config(high_freq_factor=1.0)


@pytest.mark.parametrize("dim", [10, None])
def test_channels_that_the_head_does_not_have_are_refused(dim: int | None) -> None:
    with pytest.raises(ConfigError, match=r"^position\.dim: "):
        rotary_tables(torch.arange(3)[None], RotaryConfig(dim=dim), dim_head=7)
