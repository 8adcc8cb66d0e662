"""A network that sees its own prediction."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from nets import VOCABULARY, how_often, make_net, some_ids

from xtdist.objective import NonAutoregressiveWrapper
from xtdist.objective.nonautoregressive_passes import MaskedTokens

MASK = VOCABULARY - 1


def make(net: Any = None, **keywords: Any) -> NonAutoregressiveWrapper:
    keywords = {"no_replace_prob": 0.0, "random_token_prob": 0.0, "self_cond": True, **keywords}
    return NonAutoregressiveWrapper(net or make_net(causal=False), mask_id=MASK, **keywords)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("emb_dim", [32, 24])
def test_its_parameters_have_a_gradient_in_every_step(probability: float, emb_dim: int) -> None:
    net = make_net(causal=False, embedding={"dim": emb_dim})
    wrapper = make(net, self_cond_train_prob=probability)
    for seed in range(4):
        wrapper.zero_grad()
        wrapper(some_ids(3, 12), generator=torch.Generator().manual_seed(seed)).loss.backward()
        for name, parameter in wrapper.named_parameters():
            assert parameter.grad is not None, name


def test_so_many_rows_see_the_first_pass_and_all_do_outside_of_training() -> None:
    wrapper, tokens = make(self_cond_train_prob=0.3), some_ids(2000, 3)
    ids = torch.arange(2000)
    seen = wrapper.prepare(tokens, seed=0, sample_ids=ids).conditioned
    assert seen is not None
    assert seen.float().mean().item() == pytest.approx(0.3, abs=0.04)
    part = wrapper.prepare(tokens[7:8], seed=0, sample_ids=ids[7:8]).conditioned
    assert part == seen[7:8]
    evaluated = wrapper.eval().prepare(tokens, seed=0, sample_ids=ids).conditioned
    assert evaluated is not None
    assert evaluated.all()


def test_conditioning_is_on_the_hidden_states_of_an_unconditioned_pass_without_gradient() -> None:
    wrapper, x = make(self_cond_train_prob=1.0), some_ids(2, 12)
    rows = torch.arange(24)
    first, hidden = wrapper.denoise(x, rows=rows)
    again, _ = wrapper.denoise(x, rows=rows, previous=hidden)
    assert not torch.allclose(first, again)
    prepared = wrapper.prepare(torch.cat((x, x[:, :1]), 1), seed=0, sample_ids=torch.arange(2))
    _, hidden = wrapper.denoise(prepared.inputs, rows=rows)
    logits, _ = wrapper.denoise(prepared.inputs, rows=rows, previous=hidden)
    each = torch.nn.functional.cross_entropy(logits, x.flatten(), reduction="none")
    torch.testing.assert_close(
        wrapper.losses(prepared).sum, (each * prepared.weights.flatten()).sum()
    )
    assert wrapper.self_conditioning is not None
    added = wrapper.self_conditioning(hidden)
    (gradient,) = torch.autograd.grad(added.sum(), wrapper.self_conditioning.proj.weight)
    assert gradient.any()


@pytest.mark.parametrize("scale", [0.1, 1.0, 1e3])
def test_what_is_added_is_as_large_as_embeddings_and_nothing_for_rows_that_see_nothing(
    scale: float,
) -> None:
    wrapper = make(make_net(causal=False, embedding={"dim": 24}))
    assert wrapper.self_conditioning is not None
    hidden = torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(0)) * scale
    known = torch.tensor([True, False, True])
    added = wrapper.self_conditioning(hidden, known)
    assert not added[1].any()
    size = wrapper.net.token_embedding.weight.std().item()
    torch.testing.assert_close(
        added[[0, 2]].square().mean(dim=-1).sqrt(), torch.full((2, 12), size), rtol=0.4, atol=0
    )


def test_without_earlier_states_it_is_the_network_alone() -> None:
    wrapper, x = make(), some_ids(2, 12)
    logits, _ = wrapper.denoise(x, rows=torch.arange(24))
    assert torch.equal(logits, wrapper.net(x).flatten(0, 1))


def test_in_training_what_is_added_stays_as_small_as_the_embeddings() -> None:
    """Adam moves each weight by its rate; without a size of its own the sum over the channels is
    ten times the embeddings after these steps, and the network learns worse than without it."""
    wrapper = make()
    assert wrapper.self_conditioning is not None
    added: list[torch.Tensor] = []
    wrapper.self_conditioning.register_forward_hook(lambda *args: added.append(args[-1].detach()))
    optimizer = torch.optim.Adam(wrapper.parameters(), lr=2e-3)
    start = torch.arange(32)[:, None] % 10
    for seed in range(40):
        loss = wrapper(
            (start + torch.arange(12)) % 10, generator=torch.Generator().manual_seed(seed)
        )
        optimizer.zero_grad()
        loss.loss.backward()
        optimizer.step()
    size = added[-1][added[-1].any(dim=-1)].square().mean().sqrt().item()
    assert size < 2 * wrapper.net.token_embedding.weight[:10].square().mean().sqrt().item()


@pytest.mark.parametrize("schedule", ["linear", "cosine", lambda t: (1 - t) ** 2])
def test_the_expected_loss_of_any_network_is_above_its_negative_log_likelihood(
    schedule: Any,
) -> None:
    """Its likelihood: tokens restored one by one in random order. Exact: all orders, all masks."""
    n, vocabulary = 3, 3
    net = make_net(causal=False, position={"kind": "learned"}, num_tokens=vocabulary + 1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    wrapper = NonAutoregressiveWrapper(
        net, mask_id=vocabulary, schedule=schedule, self_cond=True
    ).eval()
    drawn = how_often(wrapper.masking.schedule, n)
    gap = 0.0
    for row in itertools.islice(itertools.product(range(vocabulary), repeat=n), 0, None, 5):
        likelihood = sum(
            math.exp(_log_likelihood(wrapper, row, order))
            for order in itertools.permutations(range(n))
        )
        nll = -math.log(likelihood / math.factorial(n))
        bound = 0.0
        for k in (1, 2, 3):
            sets = list(itertools.combinations(range(n), k))
            for chosen in sets:
                loss = _expected_term(wrapper, row, chosen)
                bound += drawn[k - 1] / len(sets) * loss
        assert bound >= nll * (1 - 1e-4)
        gap = max(gap, bound - nll)
    assert gap > 1e-3


def _logp(wrapper: NonAutoregressiveWrapper, ids: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(ids.numel())
    with torch.no_grad():
        _, hidden = wrapper.denoise(ids, rows=rows)
        logits, _ = wrapper.denoise(ids, rows=rows, previous=hidden)
    return logits.log_softmax(dim=-1)


def _log_likelihood(
    wrapper: NonAutoregressiveWrapper, row: tuple[int, ...], order: tuple[int, ...]
) -> float:
    ids, total = torch.full((1, len(row)), wrapper.mask_id), 0.0
    for place in order:
        total += _logp(wrapper, ids)[place, row[place]].item()
        ids[0, place] = row[place]
    return total


def _expected_term(
    wrapper: NonAutoregressiveWrapper, row: tuple[int, ...], chosen: tuple[int, ...]
) -> float:
    targets, weights = torch.tensor([row]), torch.zeros(1, len(row))
    inputs = targets.clone()
    inputs[0, list(chosen)] = wrapper.mask_id
    weights[0, list(chosen)] = wrapper.masking.schedule.weight(len(chosen), len(row))
    prepared = MaskedTokens(
        inputs=inputs,
        targets=targets,
        weights=weights,
        counts=torch.ones(1),
        sample_ids=torch.zeros(1),
        conditioned=torch.ones(1, dtype=torch.bool),
    )
    with torch.no_grad():
        return wrapper.losses(prepared).sum.item()
