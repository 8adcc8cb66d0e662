"""CoPE, forget gates and the relative projection against x-transformers, and with a cache."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn
from x_transformers.x_transformers import (
    CoPE,
    DataDependentAlibi,
    PerRowDataDependentAlibi,
    RelativeProjPositionalBias,
)

from xtdist.config import ConfigError
from xtdist.nn.linear import initialize
from xtdist.nn.position.geometry import PositionGeometry
from xtdist.nn.position.parts import CoPEConfig, ForgettingConfig, RelativeProjectionConfig

N = 12


def geometry(*, causal: bool = True) -> PositionGeometry:
    return PositionGeometry(dim=32, heads=4, kv_heads=2, dim_head=8, causal=causal)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def past(i: int, j: int) -> Tensor:
    return torch.ones(i, j, dtype=torch.bool).tril(j - i)


def randomize(module: nn.Module) -> None:
    with torch.no_grad():
        for seed, weight in enumerate(module.parameters()):
            weight.copy_(noise(*weight.shape, seed=seed) * 0.5)


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    randomize(theirs)
    with torch.no_grad():
        for mine, weight in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(weight.reshape(mine.shape))


@pytest.mark.parametrize("talking_heads", [True, False])
@pytest.mark.parametrize("max_pos", [3, 16])
def test_cope_is_that_of_x_transformers(talking_heads: bool, max_pos: int) -> None:
    upstream = CoPE(8, 4, max_pos, talking_heads=talking_heads)
    ours = CoPEConfig(max_pos=max_pos, talking_heads=talking_heads).build(geometry())
    copy_weights(ours, upstream)
    q, scores = noise(2, 4, N, 8), noise(2, 4, N, N, seed=1)
    masked = scores.masked_fill(~past(N, N), -torch.finfo(scores.dtype).max)
    got, want = ours(q, scores, past(N, N)), upstream(q, masked)
    torch.testing.assert_close(got.tril(), want.tril())


def test_cope_by_nearness_is_a_softmax_over_all_positions() -> None:
    ours = CoPEConfig(max_pos=5, soft_onehot=True, temperature=0.3).build(geometry())
    randomize(ours)
    q, scores = noise(1, 4, N, 8), noise(1, 4, N, N, seed=1)
    got = ours(q, scores, past(N, N))
    for head, i, j in ((0, 11, 3), (2, 5, 5), (3, 9, 0)):
        position = scores[0, head, i, j : i + 1].sigmoid().sum().clamp(max=4.0)
        weights = (-(position - torch.arange(5)).abs() / 0.3).softmax(dim=0)
        want = weights @ (ours.embedding @ q[0, head, i])
        torch.testing.assert_close(got[0, head, i, j], want)


@pytest.mark.parametrize("soft_onehot", [True, False])
def test_cope_sees_no_score_outside_of_the_mask(soft_onehot: bool) -> None:
    ours = CoPEConfig(max_pos=6, soft_onehot=soft_onehot, talking_heads=True).build(geometry())
    randomize(ours)
    q, scores = noise(2, 4, N, 8), noise(2, 4, N, N, seed=1)
    mask = past(N, N) & (noise(2, 1, N, N, seed=2) > -1) | torch.eye(N, dtype=torch.bool)
    want = ours(q, scores, mask)
    for filler in (-torch.inf, 1e30):
        assert torch.equal(ours(q, scores.masked_fill(~mask, filler), mask), want)
    last = ours(q[:, :, -2:], scores[:, :, -2:], mask[:, :, -2:])
    torch.testing.assert_close(last, want[:, :, -2:])


def test_cope_passes_gradients_to_queries_scores_and_embedding() -> None:
    ours = CoPEConfig(talking_heads=True).build(geometry())
    randomize(ours)
    q, scores = noise(1, 4, N, 8).requires_grad_(), noise(1, 4, N, N, seed=1)
    scores = scores.masked_fill(~past(N, N), -torch.inf).requires_grad_()
    ours(q, scores, past(N, N)).tril().square().sum().backward()
    for tensor in (q, scores, *ours.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("causal", [True, False])
def test_forget_gates_are_those_of_x_transformers(causal: bool) -> None:
    upstream = DataDependentAlibi(32, 4, causal=causal, post_log_scale=0.7)
    ours = ForgettingConfig(log_scale=0.7).build(geometry(causal=causal))
    copy_weights(ours, upstream)
    x = noise(2, N, 32)
    got, want = ours.bias(*ours.project(x)), upstream(x)
    if causal:
        got, want = got.tril(), want.tril()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_a_forget_bias_is_the_sum_of_the_gates_between() -> None:
    ours = ForgettingConfig().build(geometry(causal=False))
    randomize(ours)
    x = noise(1, N, 32)
    got = ours.bias(*ours.project(x))
    log_gate = nn.functional.logsigmoid(ours.to_gates(x))[0]
    torch.testing.assert_close(got[0, 1, 9, 4], log_gate[5:10, 1].sum())
    torch.testing.assert_close(got[0, 1, 4, 9], log_gate[5:10, 4 + 1].sum())
    assert got.diagonal(dim1=2, dim2=3).abs().max() == 0


@pytest.mark.parametrize(
    ("causal", "per_row", "memories"),
    [(True, False, 0), (True, True, 0), (False, False, 0), (True, False, 3), (False, False, 3)],
)
@pytest.mark.parametrize("rows", [1, N])
def test_only_tokens_that_a_query_sees_forget(
    causal: bool, per_row: bool, memories: int, rows: int
) -> None:
    """Behind memories too. The gates between a key and its query, added one by one."""
    ours = ForgettingConfig(per_row=per_row).build(geometry(causal=causal))
    randomize(ours)
    j = N + memories
    row, kept = ours.project(noise(1, j, 32))
    row, seen = row[:, :, memories:], noise(1, 1, rows, j, seed=3) > 0
    got = ours.bias(row, kept, seen)
    for i, key in torch.cartesian_prod(torch.arange(N), torch.arange(j)).tolist():
        at, head = i + memories, 1
        if causal and key > at:
            continue
        sees = seen[0, 0, i % rows]
        if per_row:
            gates = nn.functional.logsigmoid(row[0, head, i] @ kept[0, head].T * 8**-0.5)
            span = range(key, at)
        else:
            gates = kept[0, head + (4 if key > at else 0), :, 0]
            span = range(min(key, at) + 1, max(key, at) + 1)
        want = sum((gates[k] for k in span if sees[k]), torch.zeros(()))
        torch.testing.assert_close(got[0, head, i, key], want, atol=1e-4, rtol=1e-4)


def test_forget_gates_per_row_are_those_of_x_transformers() -> None:
    upstream = PerRowDataDependentAlibi(32, 4, dim_head=6, post_log_scale=0.7)
    ours = ForgettingConfig(per_row=True, dim_head=6, log_scale=0.7).build(geometry())
    copy_weights(ours, upstream)
    x = noise(2, N, 32)
    torch.testing.assert_close(ours.bias(*ours.project(x)), upstream(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("first", [0, 4])
def test_forgetting_with_a_cache_is_forgetting_without(per_row: bool, first: int) -> None:
    """Also when the cache holds the tokens from ``first`` on only."""
    ours = ForgettingConfig(per_row=per_row).build(geometry())
    randomize(ours)
    x = noise(2, N, 32)
    want = ours.bias(*ours.project(x)).masked_fill(~past(N, N), 0.0)
    kept = ours.project(x[:, :8])[1]
    for start, stop in ((8, 9), (9, 12)):
        row, new = ours.project(x[:, start:stop])
        kept = torch.cat((kept, new), dim=2)
        got = ours.bias(row, kept[:, :, first:])
        visible = past(stop - start, stop)[:, first:]
        torch.testing.assert_close(
            got.masked_fill(~visible, 0.0), want[:, :, start:stop, first:stop], atol=1e-5, rtol=1e-5
        )


def test_gates_start_nearly_open() -> None:
    ours = ForgettingConfig(bias_init=6.0).build(geometry())
    initialize(ours, torch.Generator().manual_seed(0))
    assert torch.equal(ours.to_gates.bias, torch.full((4,), 6.0))
    assert ours.project(noise(2, N, 32))[1].min() > -0.2


def test_forgetting_per_row_is_refused_where_the_future_is_seen() -> None:
    with pytest.raises(ConfigError, match="per_row"):
        ForgettingConfig(per_row=True).build(geometry(causal=False))


@pytest.mark.parametrize("max_distance", [5, 64])
def test_the_relative_projection_is_that_of_x_transformers(max_distance: int) -> None:
    upstream = RelativeProjPositionalBias(32, 4, num_distance_basis=3, max_dist=max_distance)
    ours = RelativeProjectionConfig(basis=3, max_distance=max_distance).build(geometry())
    randomize(upstream)
    with torch.no_grad():
        ours.bank.copy_(upstream.distance_bank)
        ours.to_weights.weight.copy_(upstream.to_distance_weights[0].weight)
        ours.to_weights.bias.copy_(upstream.to_distance_weights[0].bias)
    x, pos = noise(2, N, 32), torch.arange(N)[None]
    torch.testing.assert_close(ours(x, pos, pos), upstream(x))
    cached = ours(x[:, -3:], pos[:, -3:], pos)
    torch.testing.assert_close(cached, upstream(x[:, -3:], seq_len_k=N))
    torch.testing.assert_close(cached, ours(x, pos, pos)[:, :, -3:])


def test_the_relative_projection_takes_any_positions_of_each_sample() -> None:
    ours = RelativeProjectionConfig(basis=3, max_distance=9).build(geometry())
    x, pos = noise(2, 4, 32), torch.tensor([[0, 1, 2, 3], [0, 5, 100, 101]])
    got = ours(x, pos, pos)
    torch.testing.assert_close(got[:1], ours(x[:1], pos[:1], pos[:1]))
    curve = ours.to_weights(x)[1, 3].reshape(4, 3) @ ours.bank
    torch.testing.assert_close(got[1, :, 3, 2], curve[:, 1])
    assert got[1, :, 3, 1].abs().max() == 0  # too far
    assert got[1, :, 0, 1].abs().max() == 0  # later


@pytest.mark.parametrize(
    "config",
    [
        CoPEConfig(talking_heads=True),
        CoPEConfig(soft_onehot=True),
        ForgettingConfig(),
        ForgettingConfig(per_row=True),
        RelativeProjectionConfig(),
    ],
    ids=str,
)
def test_parts_pickle_compile_and_start_from_the_meta_device(
    config: CoPEConfig | ForgettingConfig | RelativeProjectionConfig,
) -> None:
    with torch.device("meta"):
        part = config.build(geometry())
    part = part.to_empty(device="cpu")
    initialize(part, torch.Generator().manual_seed(0))
    randomize(part)
    x, pos = noise(2, N, 32), torch.arange(N)[None]
    q, scores, mask = noise(2, 4, N, 8), noise(2, 4, N, N, seed=1), past(N, N)

    def run(module: nn.Module) -> Tensor:
        if isinstance(config, CoPEConfig):
            return module(q, scores, mask)
        if isinstance(config, ForgettingConfig):
            return module.bias(*module.project(x))
        return module(x, pos, pos)

    want = run(part)
    assert want.dtype == torch.float32
    assert want.isfinite().all()
    assert torch.equal(run(pickle.loads(pickle.dumps(part))), want)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(part), want)
