from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter

import pytest
import torch
from decode_models import next_logits

from xtdist.decode import Engine, EngineConfig, GenerationParams
from xtdist.decode.beam import Candidate
from xtdist.decode.penalties import adjust
from xtdist.decode.sampling import Row, Sampler
from xtdist.decode.stochastic_beam import StochasticBeams, with_maximum
from xtdist.model import TransformerWrapper

VOCABULARY, LENGTH, END = 4, 3, 0


def table() -> dict[tuple[int, ...], torch.Tensor]:
    """Log-probabilities of the next token after every beginning; token 3 never comes first."""
    generator = torch.Generator().manual_seed(0)
    logits = {
        tokens: torch.randn(VOCABULARY, generator=generator)
        for n in range(LENGTH)
        for tokens in itertools.product(range(VOCABULARY), repeat=n)
    }
    logits[()][3] = -math.inf
    return {tokens: row.log_softmax(-1) for tokens, row in logits.items()}


def everything(model: dict[tuple[int, ...], torch.Tensor]) -> dict[tuple[int, ...], float]:
    """All whole sequences with their probabilities; one ends at ``END`` or at the full length."""
    whole: dict[tuple[int, ...], float] = {}
    growing = {(): 0.0}
    while growing:
        tokens, logprob = growing.popitem()
        for token, value in enumerate(model[tokens].tolist()):
            longer, total = (*tokens, token), logprob + value
            if token == END or len(longer) == LENGTH:
                whole[longer] = math.exp(total)
            else:
                growing[longer] = total
    return whole


def search(model: dict[tuple[int, ...], torch.Tensor], width: int, seed: int) -> StochasticBeams:
    beams = StochasticBeams(width, LENGTH, seed)
    running: list[tuple[int, ...]] = [()]
    while not beams.done:
        before = running

        def tokens_of(c: Candidate, before: list[tuple[int, ...]] = before) -> tuple[int, ...]:
            return (*before[c.parent], c.token)

        logprobs = torch.stack([model[tokens] for tokens in before])
        found = beams.advance(logprobs, ends=lambda c: c.token == END, tokens_of=tokens_of)
        running = [tokens_of(c) for c in found]
    return beams


def test_sequences_are_drawn_without_replacement_in_the_right_order() -> None:
    """Of two draws without replacement, i is the first with p_i and the second with
    sum over j of p_j * p_i / (1 - p_j)."""
    model, runs = table(), 3000
    exact = everything(model)
    assert sum(exact.values()) == pytest.approx(1.0)
    drawn = [search(model, 2, seed).finished for seed in range(runs)]
    assert all(len({f.tokens for f in found}) == 2 for found in drawn)
    second = {i: sum(q * p / (1 - q) for j, q in exact.items() if j != i) for i, p in exact.items()}
    for place, expected in enumerate([exact, second]):
        seen = Counter(found[place].tokens for found in drawn)
        assert not {tokens for tokens in seen if exact[tokens] == 0}
        frequent = {i: p * runs for i, p in expected.items() if p * runs >= 5}
        chi_square = sum((seen[i] - count) ** 2 / count for i, count in frequent.items())
        assert len(frequent) > 15
        assert chi_square < len(frequent) + 4 * (2 * len(frequent)) ** 0.5


def test_scores_are_log_probabilities_and_a_wide_search_finds_everything_possible() -> None:
    model = table()
    exact = {tokens: p for tokens, p in everything(model).items() if p > 0}
    found = search(model, 200, 1).finished
    assert {f.tokens for f in found} == set(exact)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(math.log(exact[hypothesis.tokens]), abs=1e-5)
        assert hypothesis.ended == (hypothesis.tokens[-1] == END)


def test_conditioned_noise_has_the_maximum_and_keeps_the_order() -> None:
    sums = torch.randn(5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 9
    sums[1] = -math.inf
    sums[2, 3] = -math.inf
    maximum = torch.tensor([[0.0], [1.0], [-700.0], [800.0], [1e-9]], dtype=torch.float64)
    moved = with_maximum(sums, maximum)
    assert not moved.isnan().any()
    assert torch.equal(moved.isneginf(), sums.isneginf())
    rows = [0, 2, 3, 4]
    in_order = moved.gather(-1, sums.argsort(-1))[rows]
    assert (in_order[:, 2:].diff(dim=-1) >= 0).all()  # the very first may be -inf
    assert torch.allclose(moved[rows].amax(-1, keepdim=True), maximum[rows])


def test_the_engine_draws_from_what_plain_sampling_draws_from(
    expert: TransformerWrapper,
) -> None:
    """One step: with temperature and filters, no token twice and none that a filter cut."""
    shape = {"temperature": 1.4, "top_k": 6, "top_p": 0.95, "bad_words": ((7,),)}
    prompt, engine = [1, 2, 3], Engine(expert, config=EngineConfig(max_sequences=40))
    row = [Row(GenerationParams(**shape), 0, prompt, 3)]
    scores = next_logits(expert, prompt)[None]
    adjust(scores, row, None)
    exact = Sampler([row[0].params], scores.device).filtered(scores)[0].log_softmax(-1)
    possible = exact.isfinite().nonzero().flatten().tolist()
    params = GenerationParams(
        max_tokens=1, num_beams=40, n=40, stochastic_beams=True, seed=1, **shape
    )
    choices = engine.generate([prompt], params)[0].choices
    drawn = list(dict.fromkeys(c.token_ids[0] for c in choices))  # the best one fills up
    assert sorted(drawn) == possible
    assert [c.score for c in choices[: len(drawn)]] == pytest.approx(
        [float(exact[token]) for token in drawn], abs=1e-4
    )
    first = Counter(
        engine.generate(
            [prompt], dataclasses.replace(params, num_beams=2, n=1, seed=seed)
        )[0].choices[0].token_ids[0]
        for seed in range(300)
    )  # fmt: skip
    expected = exact.exp() * 300
    chi_square = sum((first[t] - float(expected[t])) ** 2 / float(expected[t]) for t in possible)
    assert chi_square < len(possible) + 4 * (2 * len(possible)) ** 0.5


def test_drawn_beams_do_not_depend_on_company_and_preemption(expert: TransformerWrapper) -> None:
    params = GenerationParams(max_tokens=12, num_beams=3, n=3, stochastic_beams=True, seed=5)
    prompts = [[5], [6, 7], [8, 9, 10]]
    alone = [Engine(expert, eos_ids=(3, 17)).generate([p], params)[0] for p in prompts]
    tight = EngineConfig(max_sequences=9, max_step_tokens=10, page_tokens=2, pool_tokens=60)
    engine = Engine(expert, eos_ids=(3, 17), config=tight)
    for a, b in zip(alone, engine.generate(prompts, params), strict=True):
        assert [c.token_ids for c in a.choices] == [c.token_ids for c in b.choices]
        assert len({c.token_ids for c in a.choices}) == 3
    assert len(engine.pool.free_pages) == engine.pool.num_pages
