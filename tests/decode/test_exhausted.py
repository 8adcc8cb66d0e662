"""A text that no token may continue says so: it was not cut at ``max_tokens``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from decode_models import VOCABULARY, make_model

from xtdist.decode import Engine, GenerationParams

METHODS: dict[str, dict[str, Any]] = {
    "drawn": {},
    "greedy": {"temperature": 0.0},
    "best of": {"best_of": 2},
    "beams": {"num_beams": 2},
    "drawn beams": {"num_beams": 2, "stochastic_beams": True},
    "contrastive search": {"penalty_alpha": 0.5, "top_k": 2},
}


def at_most_two(tokens: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
    return scores if len(tokens) < 2 else torch.full_like(scores, -math.inf)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(make_model(3))


@pytest.mark.parametrize("method", METHODS)
def test_a_text_that_a_processor_ends_is_exhausted(engine: Engine, method: str) -> None:
    for count, reason in ((6, "exhausted"), (2, "length")):
        params = GenerationParams(max_tokens=count, seed=1, **METHODS[method])
        (completion,) = engine.generate([[1, 2]], params, processor=at_most_two)
        assert {c.finish_reason for c in completion.choices} == {reason}


@pytest.mark.parametrize("method", METHODS)
def test_a_text_whose_every_token_is_a_bad_word_is_exhausted(engine: Engine, method: str) -> None:
    every = tuple((token,) for token in range(VOCABULARY))
    params = GenerationParams(max_tokens=4, seed=1, bad_words=every, **METHODS[method])
    (completion,) = engine.generate([[1, 2]], params)
    assert {(c.token_ids, c.finish_reason) for c in completion.choices} == {((), "exhausted")}
