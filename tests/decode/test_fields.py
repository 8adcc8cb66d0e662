"""How parameters are written, and what is said where they are written wrong."""

from __future__ import annotations

from typing import Any

import pytest

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.decode import (
    ContrastiveParams,
    EngineConfig,
    GenerationParams,
    GrammarParams,
    MaskPredictParams,
)

PART = ContrastiveParams(alpha=0.2)
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"stop": "end"}, {"stop": ("end",)}),
    ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
    ({"stop_token_ids": [3]}, {"stop_token_ids": (3,)}),
    ({"bad_words": [[3, 4], [5]]}, {"bad_words": ((3, 4), (5,))}),
    ({"bad_words": ([3, 4],)}, {"bad_words": ((3, 4),)}),
    ({"dola": [1, 2]}, {"dola": (1, 2)}),
    ({"contrastive": {"alpha": 0.2}}, {"contrastive": PART}),
    ({"contrastive": [{"alpha": 0.2}, {"alpha": 0.2}]}, {"contrastive": (PART, PART)}),
    (
        {"grammar": {"kind": "regex", "value": "a"}},
        {"grammar": GrammarParams(kind="regex", value="a")},
    ),
]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"stop": ""}, 'stop.0: got ""; it should be a text of 1 to 256 characters'),
    ({"stop": ["a", 3]}, "stop.1: got 3; it should be a text of 1 to 256 characters"),
    ({"stop": 3}, "stop: got 3; it should be a text, or a list of up to 16 texts"),
    ({"stop": ["a"] * 17}, "it should be a text, or a list of up to 16 texts"),
    ({"stop_token_ids": 3}, "stop_token_ids: got 3; it should be a list of token ids, like [3, 4]"),
    ({"bad_words": [3, 4]}, "bad_words.1: got 4; it should be a list of 1 to 256 token ids"),
    ({"bad_words": [[]]}, "bad_words.0: got []; it should be a list of 1 to 256 token ids"),
    ({"bad_words": 3}, "bad_words: got 3; it should be a list of up to 1024 words, each a list"),
    ({"dola": 1}, "dola: got 1; it should be 'low', 'high' or a list of layer numbers"),
    ({"dola": [-1]}, "dola: got [-1]; it should be 'low', 'high' or a list of layer numbers"),
    ({"logprobs": True}, "logprobs: got true; it should be a whole number from 0 to 20"),
    ({"early_stopping": "x"}, "early_stopping: got \"x\"; it should be true, false or 'never'"),
    ({"grammar": "a"}, 'grammar: got "a"; it should be GrammarParams(kind=, value=)'),
    ({"grammar": {"kind": "regx", "value": "a"}}, 'grammar.kind: got "regx"'),
    ({"contrastive": True}, "contrastive: got true; it should be ContrastiveParams("),
    ({"contrastive": []}, "contrastive: got []; it should be ContrastiveParams("),
    ({"contrastive": [{}, 3]}, "it should be ContrastiveParams("),
    ({"contrastive": {"alfa": 0.1}}, "contrastive.alfa: unknown key; did you mean 'alpha'?"),
    ({"contrastive": {"alpha": 2.0}}, "contrastive.alpha: got 2.0; it should be less than"),
    ({"max_token": 3}, "max_token: unknown key; did you mean 'max_tokens'?"),
]


@pytest.mark.parametrize(("given", "meant"), SAME)
def test_lists_mappings_and_a_lone_text_are_taken(
    given: dict[str, Any], meant: dict[str, Any]
) -> None:
    params = GenerationParams(**given)
    assert params == GenerationParams(**meant) == from_mapping(GenerationParams, given)
    assert from_mapping(GenerationParams, to_mapping(params)) == params
    for name, value in meant.items():
        assert getattr(params, name) == value


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_a_wrong_field_says_what_it_should_be_in_python_and_from_a_file(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as made:
        GenerationParams(**given)
    assert message in str(made.value)
    with pytest.raises(ConfigError) as read:
        from_mapping(GenerationParams, given)
    assert str(read.value) == str(made.value)
    # no names of Python's or pydantic's types
    assert not {"tuple", "array", "literal", "object"} & set(str(made.value).split())


@pytest.mark.parametrize(
    ("kind", "name", "near"),
    [(EngineConfig, "max_seqs", "max_sequences"), (MaskPredictParams, "step", "steps")],
)
def test_an_unknown_field_names_the_nearest(kind: Any, name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: unknown key; did you mean '{near}'"):
        kind(**{name: 3})


def test_a_part_that_is_no_plain_data_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^contrastive: .* it should be ContrastiveParams"):
        GenerationParams(contrastive={"alpha": object()})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^stop_token_ids: .* it should be a list of token ids"):
        GenerationParams(stop_token_ids={1, 2})  # type: ignore[arg-type]


def test_a_schedule_is_one_of_two_names_or_a_function() -> None:
    with pytest.raises(ConfigError, match=r'^schedule: got "linar"; it should be .* function.*$'):
        MaskPredictParams(schedule="linar")  # type: ignore[arg-type]
    assert MaskPredictParams(schedule=lambda t: 1 - t).masked_fraction(0.25) == 0.75
