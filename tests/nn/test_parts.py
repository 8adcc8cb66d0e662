"""Norms, feed-forward, positions, embedding and init against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xtdist.nn.embedding import TokenEmbedding
from xtdist.nn.feedforward import FeedForward, GLUConfig, MLPConfig, inner_dim
from xtdist.nn.linear import Linear, initialize
from xtdist.nn.norm import LayerNormConfig, RMSNorm, RMSNormConfig
from xtdist.nn.position.learned import LearnedPosition
from xtdist.nn.position.rotary import rotary_table, rotate


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("unit_offset", [True, False])
def test_norms_follow_their_formulas(unit_offset: bool) -> None:
    x, gain = noise(2, 5, 8) * 3 + 1, noise(8, seed=1)
    for config in (
        LayerNormConfig(unit_offset=unit_offset),
        RMSNormConfig(unit_offset=unit_offset),
    ):
        norm = config.build(8)
        centred = x - x.mean(dim=-1, keepdim=True) if config.kind == "layernorm" else x
        want = centred / (centred.square().mean(dim=-1, keepdim=True) + config.eps).sqrt()
        torch.testing.assert_close(norm(x), want)
        with torch.no_grad():
            norm.gain.copy_(gain)
        torch.testing.assert_close(norm(x), want * (gain + 1 if unit_offset else gain))


def test_a_norm_in_bf16_takes_its_statistics_in_fp32() -> None:
    x = (noise(4, 4096) * 100).bfloat16()
    got = RMSNormConfig().build(4096).bfloat16()(x)
    want = x.double() / x.double().square().mean(dim=-1, keepdim=True).sqrt()
    assert (got.double() - want).abs().max() < 2**-8 * want.abs().max()


def test_a_norm_per_head_has_a_gain_per_head() -> None:
    norm = RMSNorm((3, 1, 8), RMSNormConfig())
    with torch.no_grad():
        norm.gain.copy_(torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1).expand(3, 1, 8))
    x = noise(2, 3, 5, 8)
    plain = RMSNormConfig().build(8)(x)
    torch.testing.assert_close(norm(x), plain * torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1))


@pytest.mark.parametrize("activation", ["gelu", "silu", "relu"])
def test_feed_forward_follows_its_formula(activation: str) -> None:
    act, x = getattr(F, activation), noise(2, 3, 6)
    mlp = FeedForward(6, MLPConfig(activation=activation, bias_in=True, bias_out=True))  # type: ignore[arg-type]
    hidden = act(x @ mlp.proj_in.weight.T + mlp.proj_in.bias)
    torch.testing.assert_close(mlp(x), hidden @ mlp.proj_out.weight.T + mlp.proj_out.bias)
    glu = FeedForward(6, GLUConfig(activation=activation, multiple_of=1))  # type: ignore[arg-type]
    value, gate = glu.proj_in.weight.chunk(2)
    want = ((x @ value.T) * act(x @ gate.T)) @ glu.proj_out.weight.T
    torch.testing.assert_close(glu(x), want)


def test_the_inner_width_is_rounded_up() -> None:
    assert inner_dim(GLUConfig(), 512) == 1408
    assert inner_dim(MLPConfig(), 512) == 2048
    assert inner_dim(MLPConfig(mult=2.7), 32) == 86


@pytest.mark.parametrize("dim", [8, 4])
def test_rotation_is_multiplication_by_a_complex_phase(dim: int) -> None:
    x, pos = noise(2, 3, 5, 8).double(), torch.tensor([[0, 1, 2, 3, 4], [7, 7, 900, 0, 3]])
    angle = pos[:, None, :, None] * 10000.0 ** -(torch.arange(0, dim, 2).double() / dim)
    pairs = torch.view_as_complex(x[..., :dim].unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
    got = rotate(x.float(), rotary_table(pos, dim=dim, theta=10000.0))
    torch.testing.assert_close(got[..., :dim], turned.float(), atol=2e-4, rtol=1e-4)
    assert torch.equal(got[..., dim:], x.float()[..., dim:])


def test_scores_of_rotated_vectors_depend_on_the_distance_only() -> None:
    q, k = noise(1, 1, 1, 16), noise(1, 1, 1, 16, seed=1)

    def score(i: int, j: int) -> float:
        table_i, table_j = (
            rotary_table(torch.tensor([[p]]), dim=16, theta=10000.0) for p in (i, j)
        )
        return float((rotate(q, table_i) * rotate(k, table_j)).sum())

    assert score(5, 2) == pytest.approx(score(103, 100), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-3)


def test_the_rotary_table_stays_exact_under_autocast() -> None:
    pos = torch.arange(4000)[None]
    with torch.autocast("cpu", torch.bfloat16):
        table = rotary_table(pos, dim=8, theta=10000.0)
    assert torch.equal(table.cos, rotary_table(pos, dim=8, theta=10000.0).cos)


def test_an_embedding_is_a_row_and_its_transpose_a_head() -> None:
    embedding, ids = TokenEmbedding(7, 4), torch.tensor([[3, 0]])
    assert torch.equal(embedding(ids), embedding.weight[ids])
    h = noise(2, 3, 4)
    torch.testing.assert_close(embedding(h), h @ embedding.weight.T)


def test_a_learned_position_is_a_row() -> None:
    positions = LearnedPosition(9, 4)
    assert torch.equal(positions(torch.tensor([[8, 0]])), positions.weight[[8, 0]][None])


def test_linear_layers_start_scaled_to_their_width() -> None:
    layer = Linear(300, 400, bias=True, init_gain=0.5)
    assert layer.weight.std().item() == pytest.approx(0.5 / math.sqrt(900), rel=0.02)
    assert layer.bias.abs().sum() == 0


def test_initialize_redraws_every_parameter_from_the_generator() -> None:
    parts = nn.Sequential(Linear(8, 8, bias=True), RMSNormConfig().build(8), TokenEmbedding(5, 8))
    with torch.no_grad():
        for weight in parts.parameters():
            weight.fill_(math.nan)
    initialize(parts, torch.Generator().manual_seed(0))
    first = [weight.clone() for weight in parts.parameters()]
    assert all(weight.isfinite().all() for weight in first)
    initialize(parts, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(first, parts.parameters(), strict=True))
