"""No legal combination of parameters lets a banned id or nan through."""

from __future__ import annotations

import math
from typing import Any

import pytest
from decode_models import VOCABULARY, make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from xtdist.config import ConfigError
from xtdist.decode import ContrastiveParams, Engine, EngineConfig, GenerationParams

BANNED = {0, 5, 39}
IDS = st.integers(0, VOCABULARY - 1)


def either(*values: Any, low: float, high: float) -> st.SearchStrategy[Any]:
    """The ends of a range, the values that switch a stage off, and what lies between."""
    return st.sampled_from([*values, low, high]) | st.floats(low, high)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "min_tokens": st.integers(0, 6),
    "temperature": either(0.0, 1.0, low=0.0, high=100.0),
    "top_k": st.sampled_from([0, 1, 2, 39, 40, 2**31 - 1]),
    "top_p": either(1.0, low=1e-300, high=1.0),
    "min_p": either(0.0, low=0.0, high=1 - 1e-12),
    "top_a": either(0.0, low=0.0, high=1.0),
    "typical_p": either(1.0, low=1e-300, high=1.0),
    "temperature_last": st.booleans(),
    "repetition_penalty": either(1.0, low=0.01, high=100.0),
    "presence_penalty": either(0.0, low=-2.0, high=2.0),
    "frequency_penalty": either(0.0, low=-2.0, high=2.0),
    "logit_bias": st.dictionaries(IDS, either(low=-1e4, high=1e4), max_size=5),
    "bad_words": st.lists(st.lists(IDS, min_size=1, max_size=3).map(tuple), max_size=6).map(tuple),
    "n": st.integers(1, 3),
    "best_of": st.none() | st.integers(1, 4),
    "stop_token_ids": st.lists(IDS, max_size=3).map(tuple),
    "logprobs": st.none() | st.integers(0, 20),
    "num_beams": st.sampled_from([1, 1, 1, 2, 4]),
    "stochastic_beams": st.booleans(),
    "length_penalty": st.sampled_from([1.0, -100.0, 100.0]),
    "contrastive": st.none()
    | st.builds(
        ContrastiveParams,
        alpha=either(0.0, low=0.0, high=1.0),
        beta=either(0.0, low=0.0, high=100.0),
        temperature=either(1.0, low=1e-3, high=100.0),
    ),
    "draft_tokens": st.sampled_from([0, 0, 3]),
    "penalty_alpha": either(0.0, low=0.0, high=1.0),
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(
        make_model(0),
        amateur=make_model(1, depth=1),
        eos_ids=(3, 17),
        banned_ids=sorted(BANNED),
        config=EngineConfig(max_sequences=64),
    )


@given(st.data(), st.sets(st.sampled_from(sorted(FIELDS)), max_size=7), st.integers(0, 99))
@settings(max_examples=250, deadline=None)
def test_nothing_banned_is_generated(
    engine: Engine, data: st.DataObject, names: set[str], seed: int
) -> None:
    chosen = {name: data.draw(FIELDS[name], label=name) for name in sorted(names)}
    try:
        params = GenerationParams(max_tokens=6, seed=seed, **chosen)
        name = engine.add([5, 0, 1, 2], params)
    except ConfigError:
        return
    engine.abort(name)
    single = {word[0] for word in params.bad_words if len(word) == 1}
    (completion,) = engine.generate([[5, 0, 1, 2]], params)
    assert len(completion.choices) == params.n
    for choice in completion.choices:
        assert not (BANNED | single) & set(choice.token_ids)
        assert choice.score is None or not math.isnan(choice.score)
        assert all(math.isfinite(x.logprob) for x in choice.logprobs)
        ends = {3, 17, *params.stop_token_ids}
        assert not ends & set(choice.token_ids[: params.min_tokens])
        text = [5, 0, 1, 2, *choice.token_ids]
        for word in params.bad_words:
            places = range(max(0, 5 - len(word)), len(text) - len(word) + 1)
            assert not any(tuple(text[i : i + len(word)]) == word for i in places)
    assert len(engine.pool.free_pages) == engine.pool.num_pages
