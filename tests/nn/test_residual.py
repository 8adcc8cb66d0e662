"""Residual policies and branch factors against x-transformers' own modules, and their promises."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from x_transformers import x_transformers as theirs

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.nn.linear import initialize
from xtdist.nn.residual import (
    AdaptiveLayerScaleConfig,
    ConstantScaleConfig,
    GatedMultiResidualConfig,
    GRUResidualConfig,
    HyperResidualConfig,
    LayerScaleConfig,
    MVSplitResidualConfig,
    OrthogonalResidualConfig,
    PlainResidualConfig,
    Residual,
    Streams,
    UNetSkip,
    build_branch_scale,
    build_residual,
    keep_mask,
)
from xtdist.nn.residual.hyper import sinkhorn

DIM, B, N = 8, 2, 5
SCALE = {"residual_scale": "scale"}
GRU = {
    "gru.weight_ih": "weight_branch",
    "gru.weight_hh": "weight_stream",
    "gru.bias_ih": "bias_branch",
    "gru.bias_hh": "bias_stream",
}
HYPER = {
    "norm.weight": "norm.gain",
    "static_alpha": "static_alpha",
    "dynamic_alpha_fn": "dynamic_alpha",
    "dynamic_alpha_scale": "dynamic_alpha_scale",
    "static_beta": "static_beta",
    "dynamic_beta_fn": "dynamic_beta",
    "dynamic_beta_scale": "dynamic_beta_scale",
}
GATED = {
    "read_gain": "read_gain",
    "static_read_logit": "static_read",
    "static_write_logit": "static_write",
    "to_bottleneck.weight": "to_bottleneck.weight",
    "to_read_gate.weight": "to_read.weight",
    "to_write_gate.weight": "to_write.weight",
    "dynamic_gate_scale": "dynamic_scale",
}
MV_LEARNED = {f"to_{a}.{b}": f"to_{a}.{b}" for a in ("alpha", "beta") for b in ("weight", "bias")}
PARITY: dict[str, tuple[Any, nn.Module, dict[str, str]]] = {
    "plain": (PlainResidualConfig(), theirs.Residual(DIM), {}),
    "plain_scaled": (
        PlainResidualConfig(learned_scale=True, constant=0.7),
        theirs.Residual(DIM, scale_residual=True, scale_residual_constant=0.7),
        SCALE,
    ),
    "gru": (GRUResidualConfig(), theirs.GRUGating(DIM), GRU),
    "gru_scaled": (
        GRUResidualConfig(learned_scale=True),
        theirs.GRUGating(DIM, scale_residual=True),
        GRU | SCALE,
    ),
    "orthogonal": (
        OrthogonalResidualConfig(over="sequence", learned_scale=True),
        theirs.OrthogonalResidualUpdate(DIM, scale_residual=True),
        SCALE,
    ),
    "mv_split": (
        MVSplitResidualConfig(),
        theirs.MVSplitResidualUpdate(DIM),
        {"alpha": "alpha", "beta": "beta"},
    ),
    "mv_split_learned": (
        MVSplitResidualConfig(learned=True),
        theirs.MVSplitResidualUpdate(DIM, learned=True),
        MV_LEARNED,
    ),
}
EVERY = {
    **{name: config for name, (config, _, _) in PARITY.items()},
    "orthogonal_token": OrthogonalResidualConfig(learned_scale=True),
    "hyper": HyperResidualConfig(streams=3),
    "hyper_sum": HyperResidualConfig(streams=3, mixing="sum"),
    "gated_multi": GatedMultiResidualConfig(streams=3, read_gate_rank=4),
    "gated_multi_single": GatedMultiResidualConfig(streams=1, read_gate_rank=4),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomize(module: nn.Module) -> None:
    with torch.no_grad():
        for seed, weight in enumerate(module.parameters()):
            weight.copy_(noise(*weight.shape, seed=seed + 10) * 0.5)


def copy_weights(ours: nn.Module, oracle: nn.Module, names: dict[str, str]) -> None:
    """Random values in theirs, the same in ours."""
    randomize(oracle)
    state = oracle.state_dict()
    shapes = {name: p.shape for name, p in ours.named_parameters()}
    assert len(state) == len(shapes)
    ours.load_state_dict({names[n]: value.view(shapes[names[n]]) for n, value in state.items()})


def apply(policy: Residual, stream: Tensor, branch: Tensor, mask: Tensor | None = None) -> Tensor:
    _, carry = policy(stream)
    out: Tensor = policy(branch, carry, mask)
    return out


def stream_of(config: Any, *, seed: int = 0) -> Tensor:
    return noise(B, config.streams, N, DIM, seed=seed) if config.streams > 1 else noise(B, N, DIM)


@pytest.mark.parametrize("name", PARITY)
def test_a_single_stream_policy_equals_x_transformers(name: str) -> None:
    config, oracle, names = PARITY[name]
    ours = build_residual(DIM, config, layer=0)
    copy_weights(ours, oracle, names)
    stream, branch = noise(B, N, DIM) + 0.3, noise(B, N, DIM, seed=1)
    x, carry = ours(stream)
    assert x is stream
    torch.testing.assert_close(ours(branch, carry), oracle(branch, stream))
    if name.startswith("mv_split"):
        mask = torch.arange(N) < torch.tensor([[N], [3]])
        torch.testing.assert_close(
            ours(branch, carry, mask), oracle(branch, stream, mask=mask), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize(
    ("config", "names"),
    [
        (HyperResidualConfig(streams=4, mixing="sum"), HYPER),
        (HyperResidualConfig(streams=4, sinkhorn_iters=3), HYPER),
        (GatedMultiResidualConfig(streams=4, read_gate_rank=3), GATED),
        (GatedMultiResidualConfig(streams=1, read_gate_rank=3), GATED),
    ],
    ids=["hyper_sum", "hyper", "gated_multi", "gated_multi_single"],
)
def test_a_policy_of_many_streams_equals_x_transformers(
    config: Any, names: dict[str, str], views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"layer_index": 6, "num_residual_streams": config.streams, "num_input_views": views}
    if config.kind == "hyper":
        oracle: Any = theirs.HyperConnection(DIM, sinkhorn_iters=3, **common)
    else:
        oracle = theirs.GatedMultiResidual(DIM, read_gate_rank=3, **common)
    if config.kind == "hyper" and config.mixing == "sinkhorn":
        # Upstream cuts the matrix into 1 × s slices, whose balancing always ends at ones. Give
        # their function the matrix that it is meant for.
        whole = theirs.sinkhorn
        monkeypatch.setattr(
            theirs, "sinkhorn", lambda t, iters: whole(t.squeeze(-2), iters).unsqueeze(-2)
        )
    ours = build_residual(DIM, config, layer=6, views=views)
    for start in (True, False):
        if start:
            initialize(ours)
        else:
            copy_weights(ours, oracle, names)
        if start and config.kind == "gated_multi":
            continue  # the bottleneck's start is random
        streams, branch = noise(B, config.streams, N, DIM), noise(B, N, DIM, seed=1)
        x, carry = ours(streams if config.streams > 1 else streams[:, 0])
        want, rest, more = oracle.prepare(rearrange(streams, "b s n d -> (b s) n d"))
        torch.testing.assert_close(x, want)
        got = ours(branch, carry)
        want = rearrange(oracle(branch, rest, **more), "(b s) n d -> b s n d", b=B)
        torch.testing.assert_close(got if config.streams > 1 else got[:, None], want)


def test_the_mix_of_streams_is_doubly_stochastic() -> None:
    mix = sinkhorn(noise(7, 4, 4), iters=20)
    assert (mix > 0).all()
    for dim in (-1, -2):
        torch.testing.assert_close(mix.sum(dim=dim), torch.ones(7, 4), rtol=1e-4, atol=1e-4)


def test_hyper_connections_keep_the_streams_at_their_size() -> None:
    stream = noise(B, 4, N, DIM)
    for layer in range(20):
        policy = build_residual(DIM, HyperResidualConfig(streams=4), layer=layer)
        stream = apply(policy, stream, torch.zeros(B, N, DIM))
    assert stream.abs().max() < 10  # summing all four each time would give 4^20


def test_orthogonal_by_token_adds_what_is_orthogonal_to_the_token() -> None:
    policy = build_residual(DIM, OrthogonalResidualConfig(), layer=0)
    stream, branch = noise(B, N, DIM), noise(B, N, DIM, seed=1)
    added = apply(policy, stream, branch) - stream
    torch.testing.assert_close((added * stream).sum(-1), torch.zeros(B, N), atol=1e-5, rtol=0)
    parallel = branch - added  # what was taken away points along the stream
    torch.testing.assert_close(
        torch.cosine_similarity(parallel, stream, dim=-1).abs(), torch.ones(B, N)
    )
    torch.testing.assert_close(apply(policy, torch.zeros_like(stream), branch), branch)


@pytest.mark.parametrize("name", EVERY)
def test_causal_safe_says_whether_the_future_is_seen(name: str) -> None:
    config = EVERY[name]
    policy = build_residual(DIM, config, layer=1)
    randomize(policy)
    stream, branch = stream_of(config), noise(B, N, DIM, seed=1)
    later = torch.arange(N)[:, None] >= 3
    other_stream = torch.where(later, stream + 1, stream)
    other_branch = torch.where(later, branch - 1, branch)
    x, carry = policy(stream)
    y, other_carry = policy(other_stream)
    assert torch.equal(x[..., :3, :], y[..., :3, :])
    same = torch.equal(
        policy(branch, carry)[..., :3, :], policy(other_branch, other_carry)[..., :3, :]
    )
    assert same == policy.causal_safe == config.causal_safe


@pytest.mark.parametrize("name", EVERY)
def test_a_padded_sample_gives_what_it_gives_alone(name: str) -> None:
    config = EVERY[name]
    policy = build_residual(DIM, config, layer=1)
    randomize(policy)
    stream, branch = stream_of(config), noise(B, N, DIM, seed=1)
    mask = torch.arange(N) < torch.tensor([[3], [N]])
    got = apply(policy, stream, branch, mask)
    alone = apply(policy, stream[:1, ..., :3, :], branch[:1, :3])
    torch.testing.assert_close(got[:1, ..., :3, :], alone)
    torch.testing.assert_close(got[1:], apply(policy, stream[1:], branch[1:]))


@pytest.mark.parametrize("name", EVERY)
def test_a_policy_is_initialized_copied_and_gives_every_gradient(name: str) -> None:
    config = from_mapping(type(EVERY[name]), to_mapping(EVERY[name]))
    with torch.device("meta"):
        policy = build_residual(DIM, config, layer=1)
    policy = policy.to_empty(device="cpu")
    for weight in policy.parameters():
        nn.init.constant_(weight, math.nan)
    initialize(policy, torch.Generator().manual_seed(0))
    stream, branch = stream_of(config), noise(B, N, DIM, seed=1)
    want = apply(policy, stream, branch)
    for same in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert torch.equal(apply(same, stream, branch), want)
    torch._dynamo.reset()
    run = torch.compile(apply, fullgraph=True, backend="aot_eager")
    got = run(policy, stream, branch)
    torch.testing.assert_close(got, want)
    x, _ = policy(stream.requires_grad_())
    (got.square().sum() + x.square().sum()).backward()
    for weight in policy.parameters():
        assert weight.ndim > 0  # DeepSpeed can't broadcast a parameter without dimensions
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
    half = apply(policy.bfloat16(), stream.bfloat16(), branch.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), want, rtol=0.05, atol=0.05)


def test_a_gru_starts_near_the_identity() -> None:
    policy = build_residual(DIM, GRUResidualConfig(), layer=0)
    initialize(policy, torch.Generator().manual_seed(0))
    stream, branch = noise(B, N, DIM), noise(B, N, DIM, seed=1)
    assert torch.cosine_similarity(apply(policy, stream, branch), stream, dim=-1).min() > 0.9


def test_hyper_connections_need_two_streams() -> None:
    with pytest.raises(ConfigError, match=r"residual.streams: got 1"):
        HyperResidualConfig(streams=1)


def test_streams_are_copies_with_a_vector_each_and_sum_to_one_again() -> None:
    streams = Streams(DIM, streams=3)
    x = noise(B, N, DIM)
    torch.testing.assert_close(Streams.reduce(streams(x)), 3 * x)
    randomize(streams)
    want = torch.stack([x + vector for vector in streams.embedding], dim=1)
    torch.testing.assert_close(streams(x), want)
    torch.testing.assert_close(Streams.reduce(streams(x)), 3 * x + streams.embedding.sum(dim=0))


@pytest.mark.parametrize("unit_offset", [True, False])
def test_layerscale_equals_x_transformers(unit_offset: bool) -> None:
    config = LayerScaleConfig(init_value=0.1, unit_offset=unit_offset)
    ours = build_branch_scale(DIM, config)
    oracle = theirs.LayerScale(nn.Identity(), DIM, init_value=0.1, unit_offset=unit_offset)
    x = noise(B, N, DIM)
    torch.testing.assert_close(ours(x), oracle(x))
    torch.testing.assert_close(ours(x), 0.1 * x)
    copy_weights(ours, oracle, {"gamma": "gain"})
    torch.testing.assert_close(ours(x), oracle(x))


def test_adaptive_layerscale_equals_x_transformers() -> None:
    ours = build_branch_scale(DIM, AdaptiveLayerScaleConfig(dim_condition=6))
    oracle = theirs.AdaptiveLayerScale(_IgnoringCondition(), DIM, dim_condition=6)
    x, condition = noise(B, N, DIM), noise(B, N, 6)
    initialize(ours, torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x, condition), oracle(x, condition=condition))
    names = {"to_gamma.weight": "to_gain.weight", "to_gamma.bias": "to_gain.bias"}
    copy_weights(ours, oracle, names)
    torch.testing.assert_close(ours(x, condition), oracle(x, condition=condition))
    with pytest.raises(ValueError, match=r"condition: got shape \(2, 6\)"):
        ours(x, condition[:, 0])


class _IgnoringCondition(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_constant_scale_multiplies() -> None:
    scale = build_branch_scale(DIM, ConstantScaleConfig(value=0.25))
    torch.testing.assert_close(scale(noise(B, N, DIM)), noise(B, N, DIM) / 4)


def test_a_unet_skip_equals_x_transformers() -> None:
    ours, oracle = UNetSkip(DIM), theirs.ConcatCombine(DIM, 1)
    copy_weights(ours, oracle, {"combine.weight": "combine.weight"})
    x, early, other = (noise(B, N, DIM, seed=seed) for seed in range(3))
    torch.testing.assert_close(ours(x, early), oracle(x, [other, early]))
    streams, early = noise(B, 3, N, DIM), noise(B, 3, N, DIM, seed=1)
    torch.testing.assert_close(ours(streams, early)[:, 1], ours(streams[:, 1], early[:, 1]))


@pytest.mark.parametrize("shape", [(4000, 2, 3), (4000, 2, 2, 3)])
def test_layers_are_dropped_by_sample_at_the_rate_asked_for(shape: tuple[int, ...]) -> None:
    stream = noise(*shape)
    torch.manual_seed(0)
    keep = keep_mask(stream, 0.3)
    assert keep.shape == (4000, *[1] * (len(shape) - 1))
    assert keep.float().mean().item() == pytest.approx(0.7, abs=0.03)
    torch.manual_seed(0)
    assert torch.equal(keep, keep_mask(stream, 0.3))
    assert keep_mask(stream, 0.0).all()
    drawn = [keep_mask(stream, 0.3, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*drawn)
