"""Masked-token loss: what is masked, how it is weighed, and that it learns."""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import VOCABULARY, how_often, make_net, some_ids

from xtdist.config import ConfigError, from_mapping
from xtdist.model import ModelConfig
from xtdist.objective import (
    NonAutoregressiveConfig,
    NonAutoregressiveWrapper,
    Prepared,
    build_objective,
)
from xtdist.objective.masking import Schedule, schedule_of
from xtdist.objective.nonautoregressive_passes import MaskedTokens

MASK = VOCABULARY - 1
SCHEDULES = pytest.mark.parametrize(
    "schedule",
    ["linear", "cosine", lambda t: (1 - t) ** 2, lambda t: (3 * t) % 1],
    ids=["linear", "cosine", "square", "sawtooth"],
)


def make(**options: Any) -> NonAutoregressiveWrapper:
    config = from_mapping(NonAutoregressiveConfig, options)
    return NonAutoregressiveWrapper(make_net(causal=False), mask_id=MASK, config=config)


def prepare(wrapper: NonAutoregressiveWrapper, tokens: torch.Tensor, seed: int = 0) -> Prepared:
    return wrapper.prepare(tokens, seed=seed, sample_ids=torch.arange(len(tokens)))


def test_the_linear_weight_is_one_over_the_masked_fraction() -> None:
    prepared = prepare(make(), some_ids(50, 17))
    masked = prepared.inputs == MASK
    fraction = masked.float().mean(dim=1, keepdim=True)
    torch.testing.assert_close(prepared.weights, masked / fraction)
    assert len(fraction.unique()) > 8
    assert prepared.counts.tolist() == [16.0] * 50


def test_unmasked_tokens_stay_and_targets_are_the_originals() -> None:
    tokens = some_ids(6, 17)
    prepared = prepare(make(), tokens)
    assert torch.equal(prepared.targets, tokens[:, :-1])
    kept = prepared.weights == 0
    assert torch.equal(prepared.inputs[kept], tokens[:, :-1][kept])
    assert (prepared.inputs[~kept] == MASK).all()


def test_a_rows_noise_depends_on_seed_and_sample_id_alone() -> None:
    wrapper, tokens = make(no_replace_prob=0.1, random_token_prob=0.3), some_ids(6, 17)
    whole = prepare(wrapper, tokens, seed=3)
    part = wrapper.prepare(tokens[4:5], seed=3, sample_ids=torch.tensor([4]))
    assert torch.equal(part.inputs, whole.inputs[4:5])
    assert torch.equal(part.weights, whole.weights[4:5])
    assert not torch.equal(prepare(wrapper, tokens, seed=4).inputs, whole.inputs)
    before = torch.get_rng_state()
    prepare(wrapper, tokens)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("weight", ["elbo", "none"])
def test_the_loss_is_the_weighted_cross_entropy_of_masked_tokens(weight: str) -> None:
    wrapper, tokens = make(weight=weight), some_ids(4, 17)
    prepared = prepare(wrapper, tokens)
    out = wrapper.losses(prepared)
    logits = wrapper.net(prepared.inputs)
    each = F.cross_entropy(logits.transpose(1, 2), tokens[:, :-1], reduction="none")
    masked = prepared.inputs == MASK
    if weight == "none":
        want, count = each[masked].sum(), masked.sum()
    else:
        want = (each * masked / masked.float().mean(dim=1, keepdim=True)).sum()
        count = torch.tensor(4 * 16)
    torch.testing.assert_close(out.sum, want)
    assert out.weight == count


class Oracle(torch.nn.Module):
    """Knows the distribution: gives the exact conditional of every position, or that of another
    distribution. Its 'hidden states' are log-probabilities; its head is the identity."""

    config = ModelConfig(dim=1, depth=1, heads=1, causal=False)

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table, self.num_tokens = table, table.shape[0] + 1
        self.max_seq_len = table.ndim
        self.identity = torch.eye(self.num_tokens)

    def run(self, x: torch.Tensor, mask: object = None) -> SimpleNamespace:
        return SimpleNamespace(hidden=torch.stack([self._row(row) for row in x]), aux=())

    def _row(self, row: torch.Tensor) -> torch.Tensor:
        joint = self.table
        for place, token in enumerate(row.tolist()):
            if token < len(self.table):
                keep = F.one_hot(torch.tensor(token), len(self.table)).double()
                joint = joint * keep.reshape([-1 if d == place else 1 for d in range(len(row))])
        out = torch.full((len(row), self.num_tokens), -1e9, dtype=torch.float64)
        for place in range(len(row)):
            others = [d for d in range(len(row)) if d != place]
            out[place, :-1] = (joint.sum(dim=others) / joint.sum()).clamp_min(1e-30).log()
        return out

    def apply_head(self, hidden: torch.Tensor, function: Any) -> torch.Tensor:
        return function(hidden.float(), self.identity)


@SCHEDULES
def test_the_expected_loss_of_the_true_model_is_the_entropy_and_of_another_an_upper_bound(
    schedule: Any,
) -> None:
    """The two networks give exact conditionals, for which the bound is tight."""
    g = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 2, 2, generator=g, dtype=torch.float64) ** 3
    truth /= truth.sum()
    other = torch.rand(2, 2, 2, generator=g, dtype=torch.float64)
    other /= other.sum()

    def expected(net: Oracle) -> float:
        """Exact: every sequence, every set of masked places, weighed by its probability."""
        weights_of: Schedule = schedule_of(schedule)
        wrapper = NonAutoregressiveWrapper(net, mask_id=2, config=NonAutoregressiveConfig())  # type: ignore[arg-type]
        total, drawn = 0.0, how_often(weights_of, 3)
        for row in itertools.product(range(2), repeat=3):
            for k in (1, 2, 3):
                sets = list(itertools.combinations(range(3), k))
                for chosen in sets:
                    weight = weights_of.weight(k, 3)
                    probability = truth[row] * drawn[k - 1] / len(sets)
                    total += float(probability) * _loss(wrapper, row, chosen, weight)
        return total

    entropy = -float((truth * truth.log()).sum())
    cross_entropy = -float((truth * other.log()).sum())
    assert expected(Oracle(truth)) == pytest.approx(entropy, rel=1e-4)
    assert expected(Oracle(other)) == pytest.approx(cross_entropy, rel=1e-4)
    assert cross_entropy > entropy + 0.1


def _loss(
    wrapper: NonAutoregressiveWrapper,
    row: tuple[int, ...],
    chosen: tuple[int, ...],
    weight: float,
) -> float:
    targets, weights = torch.tensor([row]), torch.zeros(1, len(row))
    inputs = targets.clone()
    inputs[0, list(chosen)], weights[0, list(chosen)] = wrapper.mask_id, weight
    prepared = MaskedTokens(
        inputs=inputs,
        targets=targets,
        weights=weights,
        counts=torch.ones(1),
        sample_ids=torch.zeros(1),
    )
    return wrapper.losses(prepared).sum.item()


@SCHEDULES
def test_the_drawn_noise_averages_to_the_entropy(schedule: Any) -> None:
    g = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 2, 2, generator=g, dtype=torch.float64) ** 3
    truth /= truth.sum()
    config = NonAutoregressiveConfig()
    wrapper = NonAutoregressiveWrapper(Oracle(truth), mask_id=2, config=config)  # type: ignore[arg-type]
    wrapper.masking = dataclasses.replace(wrapper.masking, schedule=schedule_of(schedule))
    flat = torch.multinomial(truth.flatten(), 3000, replacement=True, generator=g)
    x = torch.stack(torch.unravel_index(flat, (2, 2, 2)), dim=1)
    prepared = prepare(wrapper, torch.cat([x, x[:, :1]], dim=1))
    out = wrapper.losses(prepared)
    entropy = -float((truth * truth.log()).sum())
    assert out.mean.item() * 3 == pytest.approx(entropy, rel=0.06)


def constant_data_loss(wrapper: Any, logits: Any, x: torch.Tensor) -> float:
    """Cross-entropy of the truth where all is masked, after a short training on nothing else."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        wrapper(x.repeat(8, 1)).loss.backward()
        optimizer.step()
    with torch.no_grad():
        return F.cross_entropy(logits(torch.full_like(x, MASK))[0], x[0]).item()


KEYWORDS: list[dict[str, Any]] = [
    {},
    {"use_simple_mdlm_loss_weight": False},
    {"schedule": "cosine"},
    {"schedule": lambda t: (1 - t) ** 2},
    {"self_cond": True, "self_token_critic": True},
]


@pytest.mark.parametrize("keywords", KEYWORDS, ids=["default", "plain", "cosine", "square", "all"])
def test_constant_data_is_learned(keywords: dict[str, Any]) -> None:
    # rotary positions can't tell the places of an all-masked sequence apart: all its values agree
    net = make_net(causal=False, position={"kind": "learned"})
    wrapper = NonAutoregressiveWrapper(net, mask_id=MASK, **keywords)

    def first_step(x: torch.Tensor) -> torch.Tensor:
        return wrapper.eval().denoise(x, rows=torch.arange(16))[0][None]

    assert constant_data_loss(wrapper, first_step, some_ids(1, 16)) < 0.05


def test_constant_data_drives_the_wrapper_of_x_transformers_away_from_the_truth() -> None:
    """With its defaults; what ours learns in as many steps."""
    xt = pytest.importorskip("x_transformers")
    from x_transformers.nonautoregressive_wrapper import NonAutoregressiveWrapper as Theirs

    torch.manual_seed(0)
    stack = xt.Encoder(dim=32, depth=2, heads=2, attn_dim_head=16, verbose=False)
    net = xt.TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=16, attn_layers=stack)
    chance = math.log(VOCABULARY)
    assert constant_data_loss(Theirs(net, mask_id=MASK), net, some_ids(1, 16)) > chance + 1


def test_padding_is_never_masked_counted_or_seen() -> None:
    wrapper, x = make(), some_ids(2, 12)
    padded = torch.cat([x, torch.full((2, 4), -100)], dim=1)
    ids = torch.arange(2)
    short = wrapper._prepare_rows(x, seed=1, sample_ids=ids)
    long = wrapper._prepare_rows(padded, seed=1, sample_ids=ids)
    assert long.weight == 24
    assert (long.weights[:, 12:] == 0).all()
    assert torch.equal(long.inputs[:, :12], short.inputs)
    assert long.mask is not None
    torch.testing.assert_close(wrapper.losses(long).sum, wrapper.losses(short).sum)
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[:, 12:] = False
    by_mask = wrapper(padded.clamp_min(0), mask=mask, generator=torch.Generator().manual_seed(9))
    by_id = wrapper(padded, generator=torch.Generator().manual_seed(9))
    assert by_mask.loss == by_id.loss


@pytest.mark.parametrize("n", [1, 3, 16])
def test_any_length_up_to_the_longest_works(n: int) -> None:
    losses = make()(some_ids(2, n))
    assert losses.loss.isfinite()
    assert losses.critic_loss is None


def test_a_muted_batch_reaches_every_parameter_with_zero() -> None:
    wrapper = make()
    out = wrapper.losses(prepare(wrapper, some_ids(2, 9)).muted())
    out.sum.backward()
    assert (out.sum.item(), out.weight.item()) == (0, 0)
    for name, weight in wrapper.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() == 0, name


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    wrapper = make()
    prepared = prepare(wrapper, some_ids(5, 17))
    whole = wrapper.losses(prepared)
    parts = [wrapper.losses(prepared[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(p.sum for p in parts), whole.sum)
    assert sum(p.weight for p in parts) == whole.weight


def test_documents_in_one_row_are_as_alone() -> None:
    """Wherever they come from: given, or by the token that ends each."""
    net = make_net(causal=False)
    config = NonAutoregressiveConfig(self_cond=True)
    wrapper = NonAutoregressiveWrapper(net, mask_id=MASK, config=config, document_end=5).eval()
    one, two = some_ids(1, 6, high=5), some_ids(1, 7, seed=1, high=5)
    one[:, -1] = 5
    prepared = wrapper.prepare(
        torch.cat((one, two, two[:, :1]), 1), seed=4, sample_ids=torch.arange(1)
    )
    rows = torch.arange(13)
    packed = wrapper.losses(prepared).sum
    total = 0.0
    for part in (slice(0, 6), slice(6, 13)):
        cut = {
            f.name: getattr(prepared, f.name)[:, part]
            for f in dataclasses.fields(prepared)
            if f.name in ("inputs", "targets", "weights")
        }
        total += wrapper.losses(dataclasses.replace(prepared, documents=None, **cut)).sum
    torch.testing.assert_close(packed, total)
    documents = (rows >= 6).long()[None]
    x = torch.cat((one, two), 1)
    given = NonAutoregressiveWrapper(net, mask_id=MASK, self_token_critic=True).eval()
    seeds = [torch.Generator().manual_seed(1) for _ in range(3)]
    together = given(x, documents=documents, generator=seeds[0])
    other = torch.cat((one, two.flip(1)), 1)
    assert together.loss != given(x, generator=seeds[1]).loss
    assert together.loss != given(other, documents=documents, generator=seeds[2]).loss


def test_config_and_keywords_together_are_refused() -> None:
    config = NonAutoregressiveConfig()
    with pytest.raises(ConfigError, match="it says all; leave out schedule, steps"):
        NonAutoregressiveWrapper(
            make_net(causal=False), mask_id=MASK, config=config, steps=3, schedule="cosine"
        )


def test_left_padding_is_padding() -> None:
    wrapper, x = make(), some_ids(2, 12)
    x[:, :4] = 3
    start = torch.tensor([4, 4])
    mask = torch.arange(12).expand(2, 12) >= 4
    by_start = wrapper(x, seq_start_pos=start, generator=torch.Generator().manual_seed(9))
    by_mask = wrapper(x, mask=mask, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(by_start.loss, by_mask.loss)  # rotary positions are relative


def test_x_transformers_keywords_are_taken_and_others_refused() -> None:
    net = make_net(causal=False)
    wrapper = NonAutoregressiveWrapper(net, mask_id=MASK, use_simple_mdlm_loss_weight=False)
    want = NonAutoregressiveConfig(weight="none", no_replace_prob=0.15, random_token_prob=0.1)
    assert wrapper.config == want
    with pytest.raises(TypeError, match="did you mean 'schedule'"):
        NonAutoregressiveWrapper(net, mask_id=MASK, shedule="linear")


def test_a_decoder_and_a_mask_without_an_embedding_are_refused() -> None:
    with pytest.raises(ConfigError, match="bidirectional"):
        NonAutoregressiveWrapper(make_net(causal=True), mask_id=MASK)
    with pytest.raises(ConfigError, match="mask_id: got 20; give one of the ids 0 to 19"):
        NonAutoregressiveWrapper(make_net(causal=False), mask_id=VOCABULARY)


def test_the_config_builds_the_wrapper() -> None:
    config = NonAutoregressiveConfig(schedule="cosine")
    built = build_objective(config, make_net(causal=False), mask_id=MASK, pad_id=3)
    assert isinstance(built, NonAutoregressiveWrapper)
    assert (built.config, built.mask_id, built.pad_id) == (config, MASK, 3)
