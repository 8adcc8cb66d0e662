from __future__ import annotations

from typing import Any

import pytest
import torch
from decode_models import make_model
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from x_transformers.autoregressive_wrapper import top_a as x_transformers_top_a

from xtdist.decode import Engine, GenerationParams
from xtdist.decode.noise import gumbel, noise_key
from xtdist.decode.sampling import Row, Sampler

DRAWS = 20_000


def top_a(ratio: float) -> Any:
    """x-transformers' filter; transformers has none."""
    return lambda ids, scores: x_transformers_top_a(scores, min_p_pow=2.0, min_p_ratio=ratio)


def by_transformers(logits: torch.Tensor, params: GenerationParams) -> torch.Tensor:
    """Logits after transformers' own warpers, in its order."""
    temperature = TemperatureLogitsWarper(params.temperature)
    chain: list[Any] = [] if params.temperature_last else [temperature]
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(MinPLogitsWarper(params.min_p))
    if params.top_a:
        chain.append(top_a(params.top_a))
    if params.typical_p < 1:
        chain.append(TypicalLogitsWarper(params.typical_p))
    if params.temperature_last:
        chain.append(temperature)
    ids = torch.zeros(len(logits), 1, dtype=torch.long)
    return LogitsProcessorList(chain)(ids, logits.clone())


def draw(logits: torch.Tensor, params: GenerationParams, count: int) -> torch.Tensor:
    """How often each token comes, at ``count`` different positions."""
    positions = list(range(count))
    rows = [Row(params, 3, range(n), 0) for n in positions]
    sampler = Sampler([params] * count, logits.device)
    drawn = torch.tensor(sampler.draw(logits.expand(count, -1), rows))
    return drawn.bincount(minlength=logits.numel())


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7, "min_p": 0.2},
    {"top_k": 5},
    {"top_p": 0.6},
    {"top_p": 0.95, "temperature": 2.0},
    {"top_p": 0.95, "temperature": 2.0, "temperature_last": True},
    {"top_k": 8, "top_p": 0.7, "temperature": 1.3},
    {"top_k": 10, "min_p": 0.1},
    {"top_p": 0.9, "min_p": 0.05},
    {"top_a": 0.2},
    {"top_a": 1.0},
    {"top_p": 0.8, "top_a": 0.1, "temperature": 1.5},
    {"typical_p": 0.5},
    {"typical_p": 0.95, "temperature": 0.7},
    {"typical_p": 0.3, "top_k": 12},
    {"typical_p": 0.8, "top_p": 0.9, "min_p": 0.01, "top_a": 0.05, "top_k": 40},
    {"typical_p": 0.8, "min_p": 0.02, "temperature": 3.0, "temperature_last": True},
]


@pytest.mark.parametrize("vocabulary", [16, 900])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_filter_and_their_order_equal_transformers(
    vocabulary: int, setting: dict[str, Any]
) -> None:
    logits = torch.randn(40, vocabulary, generator=torch.Generator().manual_seed(7)) * 3
    params = GenerationParams(**setting)
    ours = Sampler([params] * len(logits), logits.device).filtered(logits)
    theirs = by_transformers(logits, params)
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    assert torch.allclose(ours.softmax(-1), theirs.softmax(-1), atol=1e-6)
    if setting.keys() - {"temperature"}:
        assert ours.isneginf().any()


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_draws_follow_the_distribution_of_transformers_filters(setting: dict[str, Any]) -> None:
    logits = torch.randn(24, generator=torch.Generator().manual_seed(1)) * 2
    params = GenerationParams(**setting)
    fits(draw(logits, params, DRAWS), by_transformers(logits[None], params)[0].softmax(-1))


def fits(seen: torch.Tensor, expected: torch.Tensor) -> None:
    """Chi-square test of counts against probabilities."""
    count = int(seen.sum())
    assert not seen[expected == 0].any()
    frequent = expected * count >= 5
    chi_square = ((seen - expected * count) ** 2 / (expected * count))[frequent].sum()
    freedom = int(frequent.sum())
    assert freedom >= 1
    assert float(chi_square) < freedom + 4 * (2 * freedom) ** 0.5 + 4


def test_rows_with_different_parameters_do_not_touch_each_other() -> None:
    logits = torch.randn(9, 700, generator=torch.Generator().manual_seed(2)) * 2
    params = [
        GenerationParams(temperature=0.0),
        GenerationParams(top_p=0.3),
        GenerationParams(),
        GenerationParams(top_k=400, temperature=1.5),
        GenerationParams(min_p=0.3),
        GenerationParams(top_k=2, top_p=0.9),
        GenerationParams(typical_p=0.5),
        GenerationParams(top_p=0.9, typical_p=0.4, temperature=3.0, temperature_last=True),
        GenerationParams(top_a=0.5),
    ]
    rows = [Row(p, seed, [1, 2], 1) for seed, p in enumerate(params)]
    together = Sampler(params, logits.device).draw(logits, rows)
    for i, row in enumerate(rows):
        assert Sampler([params[i]], logits.device).draw(logits[i : i + 1], [row]) == [together[i]]
    assert together[0] == int(logits[0].argmax())


def test_a_flat_distribution_is_cut_at_exactly_the_nucleus() -> None:
    """With equal probabilities the best 256 candidates hold too little, so the whole row counts."""
    params = GenerationParams(top_p=0.5)
    seen = draw(torch.arange(1000) * -1e-6, params, 6000)
    assert int(seen[:500].sum()) >= 5990
    assert not seen[502:].any()
    assert int((seen[:500] > 0).sum()) > 490


def test_noise_is_gumbel_and_independent_between_keys_and_tokens() -> None:
    keys = torch.tensor([noise_key(0, i) for i in range(64)], dtype=torch.int32)
    noise = gumbel(keys, torch.arange(8192)[None])
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.std()) == pytest.approx(1.2825, abs=0.01)
    correlation = torch.corrcoef(noise) - torch.eye(64)
    assert float(correlation.abs().max()) < 0.06
    shifted = torch.corrcoef(torch.stack([noise[:, :-1].flatten(), noise[:, 1:].flatten()]))
    assert abs(float(shifted[0, 1])) < 0.01


def test_noise_of_a_token_does_not_depend_on_what_stands_beside_it() -> None:
    keys = torch.tensor([noise_key(1, i) for i in range(4)], dtype=torch.int32)
    everything = gumbel(keys, torch.arange(100)[None])
    some = gumbel(keys[2:3], torch.tensor([[7, 99, 3]]))
    assert torch.equal(some, everything[2:3, [7, 99, 3]])


@pytest.mark.parametrize(
    "extreme",
    [
        {"top_k": 2**31 - 1},
        {"temperature": 100.0},
        {"temperature": 1e-4},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100.0},
        {"logit_bias": {5: 1e4}},
        {"logit_bias": {6: -1e4}, "temperature": 100.0},
    ],
)
def test_a_banned_id_is_never_drawn_at_the_ends_of_the_ranges(extreme: dict[str, Any]) -> None:
    engine = Engine(make_model(0), banned_ids=(5, 7))
    params = GenerationParams(max_tokens=20, n=4, seed=1, **extreme)
    (completion,) = engine.generate([[5, 7, 1]], params)
    assert len(completion.choices) == 4
    for choice in completion.choices:
        assert len(choice.token_ids) == 20
        assert not {5, 7} & set(choice.token_ids)
