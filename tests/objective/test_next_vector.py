"""Next-vector prediction: losses against formulas and x-transformers, rollouts against a loop,
generation with a cache and without."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.model import Decoder, Encoder, PrefixDecoder
from xtdist.model.continuous import ContinuousTransformerWrapper
from xtdist.objective.continuous import ContinuousAutoregressiveWrapper

xt = pytest.importorskip("x_transformers")

STACK: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
ROTARY: dict[str, Any] = {**STACK, "rotary_pos_emb": True}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def perturb(module: nn.Module) -> None:
    for weight in module.parameters():
        weight.add_(0.2 * torch.randn(weight.shape))


def net_of(stack: dict[str, Any] = STACK, **keywords: Any) -> ContinuousTransformerWrapper:
    torch.manual_seed(0)
    sizes = {"dim_in": 6, "dim_out": 6, "max_seq_len": 16, **keywords}
    net = ContinuousTransformerWrapper(attn_layers=Decoder(**stack), **sizes)
    perturb(net)
    return net


def wrapper_of(
    stack: dict[str, Any] = STACK, *, net: dict[str, Any] | None = None, **keywords: Any
) -> ContinuousAutoregressiveWrapper:
    return ContinuousAutoregressiveWrapper(net_of(stack, **(net or {})), **keywords)


class Theirs(nn.Module):
    """Our net behind the attributes that x-transformers' wrapper asks for."""

    can_cache_kv = False

    def __init__(self, net: ContinuousTransformerWrapper) -> None:
        super().__init__()
        self.net, self.max_seq_len, self.probabilistic = net, net.max_seq_len, net.probabilistic

    def forward(self, x: Tensor, *, cache: Any = None, **inputs: Any) -> Any:
        return self.net(x, **inputs)


LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "squared": ({}, {}),
    "absolute": ({}, {"use_l1_loss": True}),
    "probabilistic": ({"probabilistic": True}, {}),
    "own": ({}, {"loss_fn": nn.SmoothL1Loss(reduction="none")}),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_are_those_of_x_transformers(kind: str) -> None:
    net, keywords = LOSSES[kind]
    ours = wrapper_of(net=net, **keywords)
    theirs = xt.ContinuousAutoregressiveWrapper(Theirs(ours.net), **keywords)
    x = noise(2, 9, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    counted = torch.arange(8) < torch.tensor([[8], [3]])  # there, a mask of the predictions
    torch.testing.assert_close(ours(x, lens=torch.tensor([9, 4])), theirs(x, mask=counted))


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("equal", [False, True])
def test_a_ragged_batch_is_the_weighted_mean_of_its_rows(kind: str, equal: bool) -> None:
    net, keywords = LOSSES[kind]
    wrapper = wrapper_of(net=net, equal_loss_weight_batch=equal, **keywords)
    x, lens = noise(3, 9, 6), [9, 4, 1]
    got = wrapper.losses(x, lens=torch.tensor(lens))
    rows = [wrapper(x[i : i + 1, :n]) for i, n in enumerate(lens[:2])]
    want = torch.stack(rows) @ (torch.tensor([0.5, 0.5]) if equal else torch.tensor([8, 3.0]) / 11)
    torch.testing.assert_close(got.mean, want)
    assert float(got.weight) == (2 if equal else 11)
    mask = torch.arange(9) < torch.tensor(lens)[:, None]
    torch.testing.assert_close(wrapper(x, mask=mask), got.mean)


def test_padding_is_never_a_target_nor_an_input() -> None:
    wrapper = wrapper_of()
    x = noise(2, 9, 6)
    x[1, 4:] = torch.nan
    loss = wrapper(x.nan_to_num(1e6), lens=torch.tensor([9, 4]))
    torch.testing.assert_close(loss, wrapper(x.nan_to_num(0.0), lens=torch.tensor([9, 4])))
    left = torch.cat((x[1:, 4:].nan_to_num(9.0), x[1:, :4]), dim=1)
    got = wrapper(left, seq_start_pos=torch.tensor([5]))
    torch.testing.assert_close(got, wrapper(x[1:, :4]))


def test_nothing_to_predict_is_a_loss_of_zero_with_gradients() -> None:
    wrapper = wrapper_of()
    loss = wrapper(noise(2, 9, 6), lens=torch.tensor([1, 1]))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(w.grad is not None and w.grad.isfinite().all() for w in wrapper.parameters())


def test_gaussian_losses_are_the_log_density() -> None:
    wrapper = wrapper_of(net={"probabilistic": True})
    x = noise(2, 9, 6)
    mean, variance = wrapper.net(x[:, :-1])
    density = torch.distributions.Normal(mean, variance.sqrt()).log_prob(x[:, 1:])
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(wrapper(x), -(density + constant).mean())


def test_prepended_vectors_are_seen_but_not_predicted() -> None:
    wrapper = wrapper_of()
    x, before = noise(2, 9, 6), noise(2, 3, 32, seed=1)
    out = wrapper.net(x[:, :-1], prepend_embeds=before)[:, 3:]
    want = (out - x[:, 1:]).square().mean()
    torch.testing.assert_close(wrapper(x, prepend_embeds=before), want)


@pytest.mark.parametrize("kind", ["squared", "absolute"])
def test_a_rollout_compares_what_the_net_says_next_with_the_truth(kind: str) -> None:
    wrapper = wrapper_of(ROTARY, **LOSSES[kind][1])
    x = noise(2, 9, 6)
    torch.manual_seed(1)
    got = wrapper(x, rollout_steps=3)
    possible = []
    for row in range(2):  # from every place: one of them was drawn
        losses = []
        for start in range(1, 7):
            said = wrapper.generate(x[row, :start], 3)
            gap = said - x[row, start : start + 3]
            losses.append((gap.abs() if kind == "absolute" else gap.square()).mean())
        possible.append(torch.stack(losses))
    means = (possible[0][:, None] + possible[1][None]).flatten() / 2
    assert (means - got).abs().min() < 1e-5
    drawn = set()
    for _ in range(60):
        loss = wrapper(x, rollout_steps=3)
        drawn.add(int((means - loss).abs().argmin()))
    assert {i // 6 for i in drawn} == set(range(6)) == {i % 6 for i in drawn}


def test_rollouts_leave_out_what_is_padding_or_too_short() -> None:
    wrapper = wrapper_of(ROTARY)
    x = noise(3, 9, 6)
    only = wrapper(x[1:2, :4], rollout_steps=3)  # one place to start: after the first vector
    got = wrapper.losses(torch.cat((x[:2], x[2:])), rollout_steps=3, lens=torch.tensor([3, 4, 1]))
    torch.testing.assert_close(got.mean, only)
    assert float(got.weight) == 3


def test_gradients_of_a_rollout_flow_through_its_steps() -> None:
    wrapper = wrapper_of(ROTARY, net={"probabilistic": True})
    x = noise(1, 4, 6)
    wrapper(x, rollout_steps=3).backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in wrapper.parameters())
    plain = wrapper_of(ROTARY)
    first = x[:, :1].clone().requires_grad_()
    plain(torch.cat((first, x[:, 1:]), dim=1), rollout_steps=3).backward()
    assert first.grad.abs().sum() > 0


GENERATORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "learned": (STACK, {}),
    "rotary": (ROTARY, {}),
    "no limit": (ROTARY, {"max_seq_len": None}),
    "window": ({**ROTARY, "attn_max_attend_past": 3, "attn_kv_heads": 2}, {}),
    "memory tokens": (ROTARY, {"num_memory_tokens": 2}),
    "shifted tokens, which can't be cached": ({**ROTARY, "shift_tokens": 1}, {}),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_generation_is_the_net_step_by_step_with_a_cache_and_without(kind: str) -> None:
    stack, keywords = GENERATORS[kind]
    wrapper = wrapper_of(stack, net=keywords).double()  # what is fed back would grow rounding
    start = noise(2, 5, 6).double()
    want = start
    for _ in range(14):  # past max_seq_len
        x = want if wrapper.max_seq_len is None else want[:, -16:]
        want = torch.cat((want, wrapper.net.eval()(x)[:, -1:]), dim=1)
    for cached in (True, False):
        got = wrapper.generate(start, 14, cache_kv=cached)
        torch.testing.assert_close(got, want[:, 5:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(wrapper.generate(start[0], 3), want[0, 5:8], atol=1e-4, rtol=1e-4)
    assert wrapper.generate(start, 0).shape == (2, 0, 6)


def test_generation_is_that_of_x_transformers() -> None:
    wrapper = wrapper_of(ROTARY).double()

    class WithCache(Theirs):
        def forward(self, x: Tensor, *, cache: Any = None, **inputs: Any) -> Any:
            return self.net(x, return_intermediates=True)

    theirs = xt.ContinuousAutoregressiveWrapper(WithCache(wrapper.net))
    start = noise(2, 5, 6).double()
    got, want = wrapper.generate(start, 14), theirs.generate(start, 14)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_generation_reads_a_context(masked: bool) -> None:
    wrapper = wrapper_of({**ROTARY, "cross_attend": True, "cross_attn_dim_context": 7})
    start, context = noise(2, 3, 6), noise(2, 5, 7)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3]) if masked else None
    got = wrapper.generate(start, 4, context=context, context_mask=mask)
    for row, length in ((0, 5), (1, 2 if masked else 5)):
        alone = wrapper.generate(start[row], 4, context=context[row : row + 1, :length])
        torch.testing.assert_close(got[row], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got[0], got[1])


def test_samples_follow_the_predicted_distribution() -> None:
    wrapper = wrapper_of(ROTARY, net={"probabilistic": True})
    start = noise(1, 4, 6)
    mean, variance = wrapper.net(start)[..., -1, :]
    many = start.expand(4000, -1, -1)
    for temperature in (1.0, 0.5):
        draws = wrapper.generate(
            many, 1, temperature=temperature, generator=torch.Generator().manual_seed(0)
        )[:, 0]
        spread = variance[0].sqrt() * temperature
        assert ((draws.mean(dim=0) - mean[0]).abs() < 5 * spread / 4000**0.5).all()
        assert ((draws.std(dim=0) / spread - 1).abs() < 0.06).all()
    cold = wrapper.generate(start, 1, temperature=0.0)
    torch.testing.assert_close(cold[:, 0], mean)
    again = [
        wrapper.generate(start, 3, generator=torch.Generator().manual_seed(7)) for _ in range(2)
    ]
    assert torch.equal(*again)


def test_generation_leaves_every_module_in_its_mode_even_if_it_fails() -> None:
    wrapper = wrapper_of(ROTARY)
    wrapper.net.layers.sublayers[0].eval()
    modes = [module.training for module in wrapper.modules()]
    wrapper.generate(noise(1, 3, 6), 2)
    with pytest.raises(ValueError, match="x: got"):
        wrapper.generate(noise(1, 3, 5), 2)
    assert [module.training for module in wrapper.modules()] == modes
    assert True in modes
    assert False in modes


def test_every_parameter_gets_a_gradient_and_the_wrapper_pickles() -> None:
    for kind, (net, keywords) in LOSSES.items():
        wrapper = wrapper_of(net=net, **keywords)
        x = noise(2, 17, 6)
        wrapper(x).backward()
        for name, weight in wrapper.named_parameters():
            assert weight.grad is not None, (kind, name)
            assert weight.grad.abs().sum() > 0, (kind, name)
        again = pickle.loads(pickle.dumps(wrapper))
        assert torch.equal(again(x), wrapper(x))


@pytest.mark.parametrize("rollout_steps", [1, 2])
def test_it_compiles_without_a_graph_break(rollout_steps: int) -> None:
    wrapper = wrapper_of({**ROTARY, "depth": 1}, net={"probabilistic": True})
    x, lens = noise(2, 9, 6), torch.tensor([9, 4])
    compiled = torch.compile(wrapper, fullgraph=True, backend="eager")
    losses = []
    for net in (compiled, wrapper):
        torch.manual_seed(3)
        losses.append(net(x, lens=lens, rollout_steps=rollout_steps))
    torch.testing.assert_close(*losses)


def test_it_learns_a_line() -> None:
    torch.manual_seed(0)
    wrapper = ContinuousAutoregressiveWrapper(
        ContinuousTransformerWrapper(
            attn_layers=Decoder(**ROTARY), dim_in=1, dim_out=1, max_seq_len=8
        )
    )
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=3e-3)
    x = torch.linspace(0, 1, 8)[None, :, None] * torch.linspace(0.5, 2, 8)[:, None, None]
    first = float(wrapper(x).detach())
    for _ in range(60):
        loss = wrapper(x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.05 * first


def test_what_can_not_be_is_refused() -> None:
    sizes = {"dim_in": 6, "dim_out": 6}
    for stack in (Encoder(**STACK), PrefixDecoder(**STACK)):
        with pytest.raises(ConfigError, match="needs a causal net"):
            ContinuousAutoregressiveWrapper(
                ContinuousTransformerWrapper(attn_layers=stack, **sizes)
            )
    with pytest.raises(ConfigError, match="needs a causal net"):
        wrapper_of(net={"average_pool_embed": True})
    with pytest.raises(ConfigError, match="use_l1_loss and loss_fn"):
        wrapper_of(use_l1_loss=True, loss_fn=nn.MSELoss(reduction="none"))
    with pytest.raises(ConfigError, match="use_l1_loss and probabilistic"):
        wrapper_of(net={"probabilistic": True}, use_l1_loss=True)


def test_bad_input_is_one_clear_error() -> None:
    wrapper, x = wrapper_of(), noise(2, 9, 6)
    with pytest.raises(ValueError, match="n > rollout_steps=1"):
        wrapper(x[:, :1])
    with pytest.raises(ValueError, match="rollout_steps: can't be combined with mask"):
        wrapper(x, rollout_steps=2, mask=torch.ones(2, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask: got"):
        wrapper(x, mask=torch.ones(2, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="lens: new vectors have none"):
        wrapper.generate(x, 3, lens=torch.tensor([9, 4]))
    with pytest.raises(ValueError, match="start_tokens: got"):
        wrapper.generate(x[:, :0], 3)
    with pytest.raises(ValueError, match="6 channels, but the net predicts 4"):
        wrapper_of(net={"dim_out": 4})(x)
    with pytest.raises(ValueError, match="reduction='none'"):
        wrapper_of(loss_fn=nn.MSELoss())(x)
