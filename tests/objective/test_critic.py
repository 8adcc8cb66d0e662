"""A critic learns which tokens are wrong, from what it really sees."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import VOCABULARY, make_net, some_ids

from xtdist.config import ConfigError, from_mapping
from xtdist.objective import (
    NonAutoregressiveConfig,
    NonAutoregressiveWrapper,
    build_objective,
)
from xtdist.objective.critic import drawn_tokens
from xtdist.objective.nonautoregressive_passes import MaskedTokens

MASK = VOCABULARY - 1
KINDS = pytest.mark.parametrize("kind", ["self", "separate"])


def make(kind: str, net: Any = None, **keywords: Any) -> NonAutoregressiveWrapper:
    keywords = {"no_replace_prob": 0.0, "random_token_prob": 0.0, **keywords}
    net = net or make_net(causal=False)
    if kind == "self":
        return NonAutoregressiveWrapper(net, mask_id=MASK, self_token_critic=True, **keywords)
    critic = make_net(causal=False, head={"dim": 1})
    return NonAutoregressiveWrapper(net, mask_id=MASK, token_critic=critic, **keywords)


def seen_by_critic(
    wrapper: NonAutoregressiveWrapper, monkeypatch: pytest.MonkeyPatch
) -> list[torch.Tensor]:
    """What the critic is shown, filled as the wrapper runs."""
    seen: list[torch.Tensor] = []
    judged = wrapper._judged

    def spy(ids: torch.Tensor, *args: Any, **keywords: Any) -> Any:
        seen.append(ids)
        return judged(ids, *args, **keywords)

    monkeypatch.setattr(wrapper, "_judged", spy)
    return seen


@KINDS
def test_labels_say_what_is_wrong_in_what_the_critic_sees(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper, x = make(kind), some_ids(6, 12)
    seen = seen_by_critic(wrapper, monkeypatch)
    losses = wrapper(x, generator=torch.Generator().manual_seed(3))
    (ids,) = seen
    prepared = wrapper._prepare_rows(
        x,
        seed=int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(3))),
        sample_ids=torch.arange(6),
    )
    masked = prepared.weights > 0
    assert torch.equal(ids[~masked], x[~masked])
    assert (ids != MASK).all()
    assert 0 < (ids != x).sum() <= masked.sum()
    logits = wrapper.criticise(ids)
    assert logits is not None
    want = F.binary_cross_entropy_with_logits(logits, (ids != x).float())
    torch.testing.assert_close(losses.critic_loss, want)
    assert losses.generator_loss is not None
    torch.testing.assert_close(losses.loss, losses.generator_loss + want)


def gradients(module: torch.nn.Module) -> dict[str, bool]:
    return {n: p.grad is not None and bool(p.grad.any()) for n, p in module.named_parameters()}


@KINDS
def test_only_the_critic_is_trained_where_that_is_asked(kind: str) -> None:
    wrapper = make(kind, self_cond=True)
    losses = wrapper(some_ids(4, 12), only_train_critic=True)
    assert losses.generator_loss is None
    assert losses.loss == losses.critic_loss
    losses.loss.backward()
    prefix = "critic_head." if kind == "self" else "token_critic."
    for name, parameter in wrapper.named_parameters():
        if name.startswith(prefix):
            assert parameter.grad is not None, name
        else:
            assert parameter.grad is None, name


@KINDS
def test_only_the_generator_is_trained_where_that_is_asked(kind: str) -> None:
    wrapper, x = make(kind), some_ids(4, 12)
    seed = torch.Generator().manual_seed(1)
    losses = wrapper(x, only_train_generator=True, generator=seed)
    both = wrapper(x, generator=torch.Generator().manual_seed(1))
    assert losses.critic_loss is None
    torch.testing.assert_close(losses.loss, both.generator_loss)
    losses.loss.backward()
    found = gradients(wrapper)
    assert all(found[n] == n.startswith("net.") for n in found)


@KINDS
def test_together_every_parameter_is_trained_and_the_weight_counts(kind: str) -> None:
    wrapper, x = make(kind, critic_loss_weight=3.0), some_ids(4, 12)
    losses = wrapper(x)
    assert losses.generator_loss is not None
    assert losses.critic_loss is not None
    torch.testing.assert_close(losses.loss, losses.generator_loss + 3 * losses.critic_loss)
    losses.loss.backward()
    assert all(gradients(wrapper).values())


def test_the_self_critic_adds_one_vector_and_a_number_to_the_network() -> None:
    net = make_net(causal=False)
    own = make("self", net).state_dict().keys() - {f"net.{n}" for n in net.state_dict()}
    assert own == {"critic_head.weight", "critic_head.bias"}


@KINDS
@pytest.mark.parametrize("weight", [True, False], ids=["elbo", "none"])
def test_micro_batches_add_up_and_padding_changes_nothing(kind: str, weight: bool) -> None:
    wrapper = make(kind, self_cond=True, use_simple_mdlm_loss_weight=weight)
    tokens = some_ids(5, 14)
    tokens[1, 9:] = -100
    prepared = wrapper.prepare(tokens, seed=2, sample_ids=torch.arange(5))
    whole = wrapper.losses(prepared)
    parts = [wrapper.losses(prepared[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(p.sum for p in parts), whole.sum)
    for name in ("generator_loss", "critic_loss"):
        torch.testing.assert_close(sum(p.metrics[name] for p in parts), whole.metrics[name])
    assert sum(p.weight for p in parts) == whole.weight
    alone = wrapper.prepare(tokens[1:2, :10], seed=2, sample_ids=torch.tensor([1]))
    torch.testing.assert_close(wrapper.losses(prepared[1:2]).sum, wrapper.losses(alone).sum)


@KINDS
def test_a_muted_batch_reaches_every_parameter_with_zero(kind: str) -> None:
    wrapper = make(kind, self_cond=True)
    prepared = wrapper.prepare(some_ids(2, 9), seed=0, sample_ids=torch.arange(2))
    out = wrapper.losses(prepared.muted())
    out.sum.backward()
    assert (out.sum.item(), out.weight.item()) == (0, 0)
    for name, parameter in wrapper.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() == 0, name


@KINDS
def test_one_seed_gives_one_result_whatever_the_global_state(kind: str) -> None:
    wrapper, x = make(kind, self_cond=True), some_ids(4, 12)
    found = set()
    for state in range(3):
        torch.manual_seed(state)
        found.add(
            tuple(
                t.item()
                for t in wrapper(x, generator=torch.Generator().manual_seed(7))
                if t is not None
            )
        )
    torch.manual_seed(5)
    first = wrapper(x).loss
    torch.manual_seed(5)
    assert len(found) == 1
    assert wrapper(x).loss == first
    assert wrapper(x).loss != first


def test_outside_of_training_the_loss_is_the_generators_alone() -> None:
    wrapper = make("self").eval()
    prepared = wrapper.prepare(some_ids(4, 12), seed=0, sample_ids=torch.arange(4))
    out = wrapper.losses(prepared)
    assert out.metrics == {}
    with_critic = wrapper.train().losses(prepared)
    torch.testing.assert_close(out.sum, with_critic.metrics["generator_loss"])
    assert with_critic.sum > out.sum


@KINDS
def test_a_critic_learns_to_find_the_wrong_tokens(kind: str) -> None:
    """Data: one token repeated. The generator is left untrained, so it draws anything."""
    wrapper = make(kind)
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        x = some_ids(16, 1, high=8, seed=int(torch.randint(9999, (), generator=generator)))
        optimizer.zero_grad()
        wrapper(
            x.expand(16, 12), generator=generator, generator_sample_temperature=1.0
        ).loss.backward()
        optimizer.step()
    x = torch.full((1, 12), 5)
    x[0, 3], x[0, 8] = 2, 7
    logits = wrapper.eval().criticise(x)
    assert logits is not None
    assert sorted(logits[0].topk(2).indices.tolist()) == [3, 8]
    assert logits[0, [3, 8]].min() > 0 > logits[0, [0, 1, 2, 4, 5, 6, 7, 9]].max()


def test_what_the_critic_judges_is_drawn_from_the_networks_distribution() -> None:
    net = make_net(causal=False)
    hidden = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).expand(20_000, 32)
    keys = torch.stack((torch.arange(20_000), torch.zeros(20_000)), dim=1).int()
    for temperature in (0.0, 0.7):
        drawn = drawn_tokens(net, hidden, keys, torch.full((20_000,), temperature), banned=MASK)
        logits = net.to_logits(hidden[0]).detach()
        logits[MASK] = -torch.inf
        want = (logits / max(temperature, 1e-6)).softmax(dim=-1)
        share = torch.bincount(drawn, minlength=VOCABULARY) / 20_000
        assert (share - want).abs().max() < 0.015


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"causal": True, "head": {"dim": 1}}, "give an Encoder"),
        ({"causal": False}, "logits_dim=1"),
        ({"causal": False, "head": {"dim": 1}, "num_tokens": 7}, "num_tokens: got 7"),
        ({"causal": False, "head": {"dim": 1}, "max_seq_len": 8}, "max_seq_len: got 8"),
    ],
    ids=str,
)
def test_a_network_that_can_not_judge_is_refused(options: dict[str, Any], problem: str) -> None:
    critic = make_net(**options)
    with pytest.raises(ConfigError, match=problem):
        NonAutoregressiveWrapper(make_net(causal=False), mask_id=MASK, token_critic=critic)


def test_what_excludes_each_other_is_refused() -> None:
    net, x = make_net(causal=False), some_ids(2, 8)
    with pytest.raises(ConfigError, match="got the network itself"):
        NonAutoregressiveWrapper(net, mask_id=MASK, token_critic=net)
    critic = make_net(causal=False, head={"dim": 1})
    with pytest.raises(ConfigError, match="one critic"):
        NonAutoregressiveWrapper(net, mask_id=MASK, token_critic=critic, self_token_critic=True)
    plain, judged = NonAutoregressiveWrapper(net, mask_id=MASK), make("self")
    with pytest.raises(ValueError, match="there is none"):
        plain(x, only_train_critic=True)
    with pytest.raises(ValueError, match="nothing is left"):
        judged(x, only_train_critic=True, only_train_generator=True)
    with pytest.raises(ValueError, match="generator_sample_temperature: got -1"):
        judged(x, generator_sample_temperature=-1)


def test_moving_a_batch_keeps_all_of_its_noise() -> None:
    prepared = make("self", self_cond=True).prepare(
        some_ids(3, 9), seed=0, sample_ids=torch.arange(3)
    )
    moved = prepared.to("cpu")[1:]
    assert isinstance(moved, MaskedTokens)
    for field in dataclasses.fields(prepared):
        value, part = getattr(prepared, field.name), getattr(moved, field.name)
        assert part is None if value is None else torch.equal(part, value[1:]), field.name


def test_the_config_builds_critic_and_conditioning_from_the_generator() -> None:
    tree = {"dim": 24, "depth": 1, "heads": 2, "causal": False, "attention": {"dim_head": 8}}
    config = from_mapping(NonAutoregressiveConfig, {"token_critic": tree, "self_cond": True})
    built = [
        build_objective(
            config,
            make_net(causal=False),
            mask_id=MASK,
            pad_id=0,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (1, 1, 2)
    ]
    first, same, other = (wrapper.state_dict() for wrapper in built)
    assert isinstance(built[0], NonAutoregressiveWrapper)
    critic = built[0].token_critic
    assert critic is not None
    assert (critic.num_tokens, critic.max_seq_len, critic.config.dim) == (VOCABULARY, 16, 24)
    for name, tensor in first.items():
        assert torch.equal(same[name], tensor), name
    for name in ("self_conditioning.proj.weight", "token_critic.token_embedding.weight"):
        assert not torch.equal(other[name], first[name]), name


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"causal": True}, "token_critic.causal"),
        ({"num_tokens": 7}, "objective.token_critic.num_tokens: got 7, but it has to be 20"),
        ({"head": {"dim": 2}}, "objective.token_critic.head.dim: got 2"),
    ],
    ids=str,
)
def test_a_critics_config_that_can_not_be_is_refused(changes: dict[str, Any], problem: str) -> None:
    tree = {"dim": 24, "depth": 1, "heads": 2, "causal": False, **changes}

    def build() -> None:
        config = from_mapping(NonAutoregressiveConfig, {"token_critic": tree})
        build_objective(config, make_net(causal=False), mask_id=MASK, pad_id=0)

    with pytest.raises(ConfigError, match=problem):
        build()
