"""The mixture of experts against a loop over tokens and the formulas of its losses."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.nn.feedforward import GLUConfig, MLPConfig, MoE, MoEConfig, build_feedforward
from xtdist.nn.feedforward.grouped import grouped_matmul
from xtdist.nn.linear import initialize

DIM, EXPERTS = 8, 4
SHAPES: dict[str, MLPConfig | GLUConfig] = {
    "swiglu": GLUConfig(mult=2.0, multiple_of=8),
    "mlp_with_biases": MLPConfig(mult=2.0, bias_in=True, bias_out=True),
    "clamped_geglu": GLUConfig(
        activation="gelu", mult=2.0, multiple_of=8, gate_softclamp=0.5, up_softclamp=0.7
    ),
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(**options: Any) -> MoE:
    options = {"experts": EXPERTS, "top_k": 2, "expert": SHAPES["swiglu"], **options}
    moe = build_feedforward(DIM, MoEConfig(**options))
    assert isinstance(moe, MoE)
    for seed, weight in enumerate(moe.parameters()):
        with torch.no_grad():
            weight.copy_(noise(*weight.shape, seed=seed + 1) * 0.3)
    return moe


def one_expert(moe: MoE, e: int, x: torch.Tensor) -> torch.Tensor:
    config = moe.config.expert
    h = x @ moe.proj_in[e]
    if moe.bias_in is not None:
        h = h + moe.bias_in[e]
    if config.kind == "mlp":
        h = F.gelu(h)
    else:
        up, gate = h[: len(h) // 2], h[len(h) // 2 :]
        if config.up_softclamp:
            up = config.up_softclamp * (up / config.up_softclamp).tanh()
        if config.gate_softclamp:
            cdf = 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
            gate = config.gate_softclamp * (gate / config.gate_softclamp).tanh() * cdf
        else:
            gate = gate * gate.sigmoid()
        h = up * gate
    out = h @ moe.proj_out[e]
    return out if moe.bias_out is None else out + moe.bias_out[e]


def by_token(moe: MoE, x: torch.Tensor) -> torch.Tensor:
    """Each token alone through its best experts."""
    k, outs = moe.config.top_k, []
    for token in x.flatten(0, 1):
        scores = (moe.router.weight @ token).tolist()
        best = sorted(range(len(scores)), key=lambda e: -scores[e])[:k]
        powers = {e: math.exp(scores[e]) for e in range(len(scores))}
        total = sum(powers[e] for e in (best if k > 1 else powers))
        parts = [powers[e] / total * one_expert(moe, e, token) for e in best]
        outs.append(torch.stack(parts).sum(dim=0))
    out = torch.stack(outs).view_as(x)
    return out if moe.shared is None else out + moe.shared(x)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_a_loop_over_tokens(shape: str, top_k: int) -> None:
    moe, x = build(expert=SHAPES[shape], top_k=top_k, shared_experts=top_k - 1), noise(2, 7, DIM)
    torch.testing.assert_close(moe(x).out, by_token(moe, x))


def test_shared_experts_are_one_wider_layer() -> None:
    shared = build(expert=GLUConfig(mult=2.7, multiple_of=8), shared_experts=3).shared
    assert shared is not None
    assert shared.proj_out.weight.shape == (DIM, 3 * 24)


def test_gradients_equal_those_of_the_loop() -> None:
    moe, x = build(expert=SHAPES["mlp_with_biases"]), noise(2, 7, DIM)
    # The loop takes the mixing weights as constants, so the router is left out.
    experts = [p for name, p in moe.named_parameters() if "router" not in name]
    loop = torch.autograd.grad(by_token(moe, x).square().sum(), experts)
    got = torch.autograd.grad(moe(x).out.square().sum(), experts)
    for a, b in zip(got, loop, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_router_learns_from_the_task(top_k: int) -> None:
    moe = build(top_k=top_k)
    moe(noise(2, 7, DIM)).out.square().sum().backward()
    assert moe.router.weight.grad is not None
    assert moe.router.weight.grad.abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_expert_without_tokens_has_zero_gradients(dtype: torch.dtype) -> None:
    moe = build(expert=SHAPES["mlp_with_biases"], shared_experts=1)
    with torch.no_grad():
        moe.router.weight[0] = 0.0
        moe.router.weight[0, 0] = -100.0
    x = noise(2, 7, DIM)
    x[..., 0] = 1.0
    out, aux = moe.to(dtype)(x.to(dtype))
    (out.float().square().sum() + sum(a.scale * a.sum / a.weight for a in aux)).backward()
    for name, weight in moe.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
    for stacked in (moe.proj_in, moe.proj_out, moe.bias_in, moe.bias_out):
        assert stacked is not None
        assert stacked.grad is not None
        used = stacked.grad.flatten(1).abs().sum(dim=1) > 0
        assert used.tolist() == [False, True, True, True]


def test_one_feature_off_alignment_gives_the_same_products() -> None:
    ends = torch.tensor([2, 2, 7], dtype=torch.int32)
    for width in (8, 7):
        rows = noise(7, width).bfloat16()
        weight = noise(3, width, 8, seed=1).bfloat16()
        want = torch.cat(
            [rows[:2].float() @ weight[0].float(), rows[2:].float() @ weight[2].float()]
        )
        got = grouped_matmul(rows, weight, ends)
        torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=1e-2)


def test_bf16_is_close_to_fp32_and_the_router_stays_fp32() -> None:
    moe, x = build(top_k=4), noise(2, 7, DIM)  # all experts: no choice that rounding could flip
    want = moe(x).out
    half = copy.deepcopy(moe).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert half.router(x[0].bfloat16()).dtype == torch.float32
        torch.testing.assert_close(moe(x).out.float(), want, rtol=0.05, atol=0.05)
    torch.testing.assert_close(half(x.bfloat16()).out.float(), want, rtol=0.05, atol=0.05)


def losses(moe: MoE, x: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, float]:
    return {a.name: float(a.sum / a.weight) for a in moe(x, mask).aux}


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_losses_follow_their_formulas_over_real_tokens(top_k: int) -> None:
    moe, x = build(top_k=top_k), noise(2, 7, DIM)
    mask = torch.arange(7)[None] < torch.tensor([[7], [3]])
    real = x[mask]
    scores = (real @ moe.router.weight.T).double()
    probs = scores.softmax(dim=-1)
    share = [0.0] * EXPERTS
    for p in probs:
        for e in p.topk(top_k).indices.tolist():
            share[e] += 1 / (top_k * len(real))
    means = probs.mean(dim=0).tolist()
    balance = EXPERTS * sum(share[e] * means[e] for e in range(EXPERTS))
    z = float(scores.exp().sum(dim=-1).log().square().mean())
    assert losses(moe, x, mask) == pytest.approx({"balance": balance, "router_z": z}, rel=1e-5)
    assert all(float(a.weight) == 10 for a in moe(x, mask).aux)
    padded = torch.where(mask[..., None], x, 1e3)
    assert losses(moe, padded, mask) == pytest.approx(losses(moe, x, mask), rel=1e-5)


def test_the_balance_loss_is_one_when_even_and_more_when_not() -> None:
    moe = build(top_k=1)
    with torch.no_grad():
        moe.router.weight.copy_(torch.eye(EXPERTS, DIM))
    even = torch.eye(EXPERTS, DIM)[None] * 20
    assert losses(moe, even)["balance"] == pytest.approx(1.0, abs=1e-5)
    assert losses(moe, even[:, :1].expand(1, 4, DIM))["balance"] == pytest.approx(4.0, abs=1e-5)


def test_the_balance_loss_pushes_towards_the_idle_expert() -> None:
    moe = build(top_k=1)
    x = noise(1, 32, DIM)
    x[..., 0] = 3.0
    with torch.no_grad():
        moe.router.weight[1, 0] += 1.0
    before = losses(moe, x)["balance"]
    for _ in range(60):
        balance = moe(x).aux[0]
        (grad,) = torch.autograd.grad(balance.sum / balance.weight, [moe.router.weight])
        with torch.no_grad():
            moe.router.weight.sub_(grad)
    assert losses(moe, x)["balance"] < 0.75 * before


def test_a_permutation_of_the_tokens_permutes_the_output() -> None:
    moe, x, order = build(), noise(1, 9, DIM), torch.randperm(9)
    torch.testing.assert_close(moe(x[:, order]).out, moe(x).out[:, order])


def test_a_batch_gives_what_each_sample_gives_alone() -> None:
    moe, x = build(), noise(3, 5, DIM)
    torch.testing.assert_close(moe(x).out, torch.cat([moe(row[None]).out for row in x]))


def test_no_token_at_all_gives_finite_losses() -> None:
    for loss in build()(noise(1, 3, DIM), torch.zeros(1, 3, dtype=torch.bool)).aux:
        assert (float(loss.sum), float(loss.weight)) == (0.0, 0.0)


def test_dropouts_act_in_training_only() -> None:
    moe, x = build(expert=GLUConfig(multiple_of=8, dropout=0.5, dropout_out=0.5)), noise(1, 9, DIM)
    out = moe.train()(x).out
    assert 0.2 < (out == 0).float().mean() < 0.8
    assert torch.equal(moe.eval()(x).out, moe.eval()(x).out)


def test_it_is_initialized_copied_and_pickled() -> None:
    config = MoEConfig(expert=SHAPES["mlp_with_biases"], shared_experts=1)
    with torch.device("meta"):
        moe = MoE(DIM, from_mapping(MoEConfig, to_mapping(config)), init_gain=0.1)
    moe = moe.to_empty(device="cpu")
    for weight in moe.parameters():
        nn.init.constant_(weight, math.nan)
    initialize(moe, torch.Generator().manual_seed(0))
    assert moe.proj_in.std().item() == pytest.approx(1 / math.sqrt(3 * DIM), rel=0.1)
    assert moe.proj_out.std().item() == pytest.approx(0.1 / math.sqrt(3 * 2 * DIM), rel=0.1)
    x = noise(1, 5, DIM)
    for same in (copy.deepcopy(moe), pickle.loads(pickle.dumps(moe))):
        assert torch.equal(same(x).out, moe(x).out)


def test_in_bf16_nothing_breaks_the_graph() -> None:
    torch._dynamo.reset()
    moe, x = build().bfloat16(), noise(1, 9, DIM).bfloat16()
    got = torch.compile(moe, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got.out, moe(x).out)
    assert [a.name for a in got.aux] == ["balance", "router_z"]


def test_in_fp32_compiled_equals_eager() -> None:
    torch._dynamo.reset()
    moe, x = build(), noise(1, 9, DIM)
    got = torch.compile(moe, backend="aot_eager")(x)
    torch.testing.assert_close(got.out, moe(x).out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 2, "top_k": 3}, r"top_k: got 3 with experts=2"),
        ({"expert": MLPConfig(activation="solu")}, r"expert.activation: got 'solu'"),
        ({"expert": MLPConfig(post_act_norm=True)}, r"expert.post_act_norm: got True"),
        ({"expert": GLUConfig(mult_bias=True)}, r"expert.mult_bias: got True"),
    ],
)
def test_what_experts_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MoEConfig(**options)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask: got shape \(1, 4\) for tokens \(1, 3\)"):
        build()(noise(1, 3, DIM), torch.ones(1, 4, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
def test_no_tokens_are_routed_nowhere(shape: tuple[int, int]) -> None:
    out, aux = build()(torch.zeros(*shape, DIM))
    assert out.shape == (*shape, DIM)
    assert [float(loss.sum) for loss in aux] == [0.0, 0.0]
