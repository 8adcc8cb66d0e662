"""ALiBi, T5 and dynamic biases against x-transformers and against each other's shortcuts."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from x_transformers.x_transformers import (
    AlibiPositionalBias,
    DynamicPositionBias,
    RelativePositionBias,
    ScaledSinusoidalEmbedding,
)

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.nn.linear import initialize
from xtdist.nn.position.alibi import alibi_slopes
from xtdist.nn.position.bias import AlibiConfig, DynamicConfig, PositionBiasConfig, T5Config
from xtdist.nn.position.config import SinusoidalConfig
from xtdist.nn.position.dynamic import DynamicBias
from xtdist.nn.position.geometry import PositionGeometry
from xtdist.nn.position.t5 import bucket_starts


def geometry(
    *, heads: int = 4, kv_heads: int | None = None, causal: bool = True
) -> PositionGeometry:
    return PositionGeometry(
        dim=32, heads=heads, kv_heads=kv_heads or heads, dim_head=16, causal=causal
    )


def span(i: int, j: int) -> tuple[Tensor, Tensor]:
    """Positions of the last i of j tokens, and of all."""
    pos = torch.arange(j)[None]
    return pos[:, j - i :], pos


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def t5(config: T5Config, *, causal: bool) -> tuple[nn.Module, nn.Module]:
    upstream = RelativePositionBias(
        scale=4.0,
        causal=causal,
        num_buckets=config.buckets,
        max_distance=config.max_distance,
        heads=4,
    )
    ours = config.build(geometry(causal=causal))
    with torch.no_grad():
        ours.weight.copy_(upstream.relative_attention_bias.weight)
    return ours, upstream


def dynamic(config: DynamicConfig) -> tuple[DynamicBias, nn.Module]:
    upstream = DynamicPositionBias(
        8, heads=4, depth=config.depth, log_distance=config.log_distance, norm=config.norm
    )
    ours = config.build(geometry())
    with torch.no_grad():
        for weight in upstream.parameters():
            weight.copy_(noise(*weight.shape, seed=weight.numel()))
        for weight, theirs in zip(ours.parameters(), upstream.parameters(), strict=True):
            weight.copy_(theirs)
    return ours, upstream


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 20, 32])
def test_slopes_are_those_of_x_transformers(heads: int) -> None:
    assert alibi_slopes(heads) == pytest.approx(AlibiPositionalBias._get_slopes(heads))


@pytest.mark.parametrize(
    "config", [AlibiConfig(), AlibiConfig(heads=3), AlibiConfig(slopes=(0.5, 2.0))]
)
@pytest.mark.parametrize(("i", "j"), [(7, 7), (2, 9), (1, 300)])
def test_alibi_is_that_of_x_transformers(config: AlibiConfig, i: int, j: int) -> None:
    slopes = None if config.slopes is None else list(config.slopes)
    heads = config.heads or (4 if slopes is None else 2)
    upstream = AlibiPositionalBias(heads, total_heads=4, slopes=slopes)
    got = config.build(geometry())(*span(i, j))
    assert got.shape == (1, 4, i, j)
    torch.testing.assert_close(got[0], upstream(i, j))


def test_alibi_takes_any_positions_of_each_sample() -> None:
    pos = torch.tensor([[0, 1, 2, 0, 1], [5, 3, 900, 7, 7]])
    got = AlibiConfig().build(geometry())(pos, pos)
    torch.testing.assert_close(got, AlibiPositionalBias(4).forward_custom_pos(pos))
    one = AlibiConfig().build(geometry())(pos[:1], pos)
    torch.testing.assert_close(one[1, 2], -alibi_slopes(4)[2] * (pos[0][:, None] - pos[1]).abs())


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_slopes_follow_the_heads_to_their_keys(kv_heads: int) -> None:
    """Head t of x-transformers reads key head t mod kv_heads and is ours number (t mod kv_heads) ·
    groups + t div kv_heads."""
    ours = AlibiConfig(heads=5).build(geometry(heads=6, kv_heads=kv_heads)).slopes
    theirs = (*alibi_slopes(5), 0.0)
    groups = 6 // kv_heads
    for head in range(6):
        assert ours[(head % kv_heads) * groups + head // kv_heads] == theirs[head]


def reference_bucket(distance: int, *, causal: bool, config: T5Config) -> int:
    relative = torch.tensor(-distance)
    return int(
        RelativePositionBias._relative_position_bucket(
            relative, causal=causal, num_buckets=config.buckets, max_distance=config.max_distance
        )
    )


@settings(max_examples=60, deadline=None)
@given(
    buckets=st.integers(4, 64),
    extra=st.integers(0, 300),
    causal=st.booleans(),
    distance=st.integers(-500, 500),
)
def test_every_distance_is_in_the_bucket_of_x_transformers(
    buckets: int, extra: int, causal: bool, distance: int
) -> None:
    config = T5Config(buckets=buckets, max_distance=buckets + extra)
    ours = config.build(geometry(causal=causal))
    got = int(ours.bucket(torch.tensor(distance)))
    assert got == reference_bucket(distance, causal=causal, config=config)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("i", "j"), [(7, 7), (3, 200), (1, 300)])
@pytest.mark.parametrize("config", [T5Config(), T5Config(buckets=5, max_distance=9)])
def test_t5_biases_are_those_of_x_transformers(
    causal: bool, i: int, j: int, config: T5Config
) -> None:
    ours, upstream = t5(config, causal=causal)
    torch.testing.assert_close(ours(*span(i, j))[0], upstream(i, j))


def test_bucket_starts_are_whole_powers_where_they_should_be() -> None:
    """Eight buckets from 8 to 128: half powers of two, rounded up."""
    want = [1, 2, 3, 4, 5, 6, 7, 8, *(math.ceil(8 * 2 ** (k / 2)) for k in range(1, 8))]
    assert list(bucket_starts(16, 128)) == want


@pytest.mark.parametrize("log_distance", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
def test_dynamic_biases_are_those_of_x_transformers(
    log_distance: bool, norm: bool, depth: int
) -> None:
    ours, upstream = dynamic(DynamicConfig(log_distance=log_distance, norm=norm, depth=depth))
    for i, j in ((6, 6), (2, 40)):
        want = upstream(i, j)
        torch.testing.assert_close(ours(*span(i, j))[0], want, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(ours(*span(i, j), reach=j - 1)[0], want, atol=1e-3, rtol=1e-4)


ALL = [AlibiConfig(), T5Config(), DynamicConfig(log_distance=True, norm=True), DynamicConfig()]


@pytest.mark.parametrize("config", ALL, ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_a_bias_depends_on_the_distance_and_not_on_the_length(
    config: PositionBiasConfig, causal: bool
) -> None:
    bias = config.build(geometry(causal=causal))
    initialize(bias, torch.Generator().manual_seed(0))
    whole = bias(*span(40, 40), reach=39)
    torch.testing.assert_close(bias(*span(1, 40)), whole[:, :, -1:])
    torch.testing.assert_close(bias(*span(20, 20), reach=19), whole[:, :, :20, :20])
    shifted = tuple(pos + 1000 for pos in span(40, 40))
    torch.testing.assert_close(bias(*shifted, reach=39), whole)
    assert whole.std(dim=(2, 3)).min() > 0


@pytest.mark.parametrize("config", ALL, ids=str)
def test_a_cast_to_bf16_rounds_weights_but_no_distance(config: PositionBiasConfig) -> None:
    bias = config.build(geometry()).bfloat16()
    rounded = copy.deepcopy(bias).float()
    q, k = span(2, 3000)
    with torch.autocast("cpu", torch.bfloat16):
        got = bias(q, k)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, rounded(q, k))


@pytest.mark.parametrize("config", ALL, ids=str)
def test_a_bias_survives_pickle_and_the_meta_device(config: PositionBiasConfig) -> None:
    bias = config.build(geometry())
    want = bias(*span(5, 9))
    assert torch.equal(pickle.loads(pickle.dumps(bias))(*span(5, 9)), want)
    with torch.device("meta"):
        empty = config.build(geometry())
    built = empty.to_empty(device="cpu")
    initialize(built, torch.Generator().manual_seed(0))
    assert built(*span(5, 9)).isfinite().all()
    built.load_state_dict(bias.state_dict())
    assert torch.equal(built(*span(5, 9)), want)


@pytest.mark.parametrize("config", ALL, ids=str)
def test_a_bias_compiles_and_trains_every_parameter(config: PositionBiasConfig) -> None:
    bias = config.build(geometry())
    q, k = span(30, 200)
    compiled = torch.compile(bias, fullgraph=True, backend="aot_eager")
    got = compiled(q, k, reach=199)
    torch.testing.assert_close(got, bias(q, k, reach=199))
    if config.kind != "alibi":
        (got * noise(*got.shape)).sum().backward()
        assert all(weight.grad is not None for weight in bias.parameters())
        assert all(weight.grad.abs().sum() > 0 for weight in bias.parameters())


@pytest.mark.parametrize("config", [AlibiConfig(heads=3), T5Config()], ids=str)
@pytest.mark.parametrize("rows", [1, 2])
def test_the_score_mod_of_flex_attention_adds_the_bias(
    config: AlibiConfig | T5Config, rows: int
) -> None:
    bias = config.build(geometry())
    pos = torch.tensor([[0, 1, 2, 3, 50, 0], [9, 300, 4, 4, 5, 6]])[:rows]
    q, k, v = (noise(2, 4, 6, 16, seed=s) for s in range(3))
    with torch.no_grad():
        got = flex_attention(q, k, v, score_mod=bias.flex(pos, pos))
    want = nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias(pos, pos).expand(2, -1, -1, -1)
    )
    torch.testing.assert_close(got, want.detach(), atol=1e-5, rtol=1e-5)


def test_sinusoidal_positions_are_those_of_x_transformers() -> None:
    upstream, ours = ScaledSinusoidalEmbedding(12), SinusoidalConfig().build(12)
    x = torch.zeros(2, 50, 12)
    torch.testing.assert_close(ours(torch.arange(50)[None])[0], upstream(x))
    with torch.no_grad():
        ours.scale.fill_(3.0)
    pos = torch.tensor([[7, 0, 7], [1, 2, 3000]])
    got = ours(pos)
    assert got.shape == (2, 3, 12)
    assert torch.equal(got[0, 0], got[0, 2])
    want = (3000 * 10000.0 ** -(torch.arange(6).double() / 6)).sin() * 3
    torch.testing.assert_close(got[1, 2, :6].double(), want, atol=2e-3, rtol=0)


def test_a_cast_to_bf16_keeps_sinusoidal_positions_apart() -> None:
    pos = torch.arange(2000, 3000)[None]
    ours = SinusoidalConfig().build(64)
    rounded = copy.deepcopy(ours).bfloat16()
    got = rounded(pos)
    assert got.dtype == torch.bfloat16
    scale = rounded.scale.float() / ours.scale
    torch.testing.assert_close(got.float(), ours(pos) * scale, atol=2e-3, rtol=2**-8)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: AlibiConfig(heads=3, slopes=(1.0, 2.0)), "slopes"),
        (lambda: AlibiConfig(slopes=()), "slopes"),
        (lambda: AlibiConfig(heads=5).build(geometry()), "heads"),
        (lambda: AlibiConfig(slopes=(1.0,) * 5).build(geometry()), "heads"),
        (lambda: T5Config(buckets=200), "buckets"),
        (lambda: T5Config(buckets=1), "buckets"),
        (lambda: T5Config(buckets=3).build(geometry(causal=False)), "buckets"),
    ],
)
def test_biases_that_make_no_sense_are_refused(build: object, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"^position_bias\.{named}: "):
        build()  # type: ignore[operator]


def test_an_odd_width_has_no_sinusoidal_positions() -> None:
    with pytest.raises(ConfigError, match="even"):
        SinusoidalConfig().build(7)


def test_configs_survive_yaml_and_are_checked_there_too() -> None:
    config = AlibiConfig(slopes=(0.5, 0.25))
    assert from_mapping(AlibiConfig, to_mapping(config)) == config
    with pytest.raises(ConfigError, match="at most max_distance"):
        from_mapping(T5Config, {"buckets": 9, "max_distance": 8})
