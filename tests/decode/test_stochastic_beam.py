from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from xtdist.decode.beam import Candidate
from xtdist.decode.stochastic_beam import StochasticBeams, with_maximum

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
