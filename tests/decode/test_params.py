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

WRONG = [
    ("max_tokens", 0),
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("top_p", 0.0),
    ("top_p", 1.5),
    ("top_k", -1),
    ("top_k", 2**31),
    ("temperature", 1e300),
    ("length_penalty", 101.0),
    ("length_penalty", -101.0),
    ("logit_bias", {3: 1e300}),
    ("logit_bias", {3: -1e300}),
    ("repetition_penalty", 1e-300),
    ("repetition_penalty", 1e300),
    ("min_p", 1.0),
    ("repetition_penalty", 0.0),
    ("presence_penalty", 3.0),
    ("n", 0),
    ("n", 100_000),
    ("logprobs", 21),
    ("logprobs", -1),
    ("seed", 2**63),
    ("stop", ("",)),
    ("stop", ("a",) * 17),
    ("min_tokens", 17),
    ("early_stopping", "sometimes"),
    ("top_a", 1.1),
    ("top_a", -0.1),
    ("typical_p", 0.0),
    ("typical_p", float("nan")),
    ("bad_words", ((),)),
    ("bad_words", ((-1,),)),
    ("best_of", 0),
    ("contrastive", ()),
    ("draft_tokens", 65),
    ("penalty_alpha", 1.5),
    ("dola", "middle"),
    ("dola", ()),
]
CONFLICTS: list[dict[str, Any]] = [  # the field that the message names comes first
    {"best_of": 2, "n": 3},
    {"early_stopping": False},
    {"early_stopping": "never"},
    {"length_penalty": 0.5},
    {"stochastic_beams": True},
    {"n": 5, "num_beams": 4},
    {"best_of": 4, "num_beams": 4},
    {"draft_tokens": 2, "num_beams": 4},
    {"penalty_alpha": 0.6, "top_k": 4, "num_beams": 4},
    {"penalty_alpha": 0.6},
    {"penalty_alpha": 0.6, "top_k": 1},
    {"top_p": 0.5, "penalty_alpha": 0.6, "top_k": 4},
    {"temperature": 0.5, "penalty_alpha": 0.6, "top_k": 4},
    {"n": 2, "penalty_alpha": 0.6, "top_k": 4},
    {"contrastive": ContrastiveParams(), "penalty_alpha": 0.6, "top_k": 4},
    {"dola": "low", "contrastive": ContrastiveParams()},
    {"ignore_eos": True, "grammar": GrammarParams(kind="regex", value="a")},
    {"typical_p": 0.5, "num_beams": 2},
    {"temperature_last": True, "num_beams": 2},
    {"temperature": 0.0, "num_beams": 2, "stochastic_beams": True},
    {"length_penalty": 2.0, "num_beams": 2, "stochastic_beams": True},
    {"early_stopping": True, "num_beams": 2, "stochastic_beams": True},
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_out_of_range_is_refused_by_name_in_python(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        GenerationParams(**{name: value})


@pytest.mark.parametrize(("name", "value"), [w for w in WRONG if w[1] == w[1]])
def test_a_value_out_of_range_is_refused_by_name_from_a_file(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        from_mapping(GenerationParams, {name: value})


@pytest.mark.parametrize("conflict", CONFLICTS, ids=str)
def test_what_can_not_be_honoured_together_is_refused_by_name(conflict: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(conflict))}: got"):
        GenerationParams(**conflict)


def test_what_goes_together_is_taken() -> None:
    drawn = GenerationParams(num_beams=3, stochastic_beams=True, temperature=0.7, top_k=5)
    assert drawn.width == 3
    assert GenerationParams(num_beams=2, early_stopping=False).early_stopping is False
    assert GenerationParams(penalty_alpha=0.6, top_k=4, temperature=0.0).width == 4
    assert GenerationParams(n=2, best_of=4).width == 4


def test_only_what_is_not_ranked_at_the_end_streams() -> None:
    assert GenerationParams(n=3).streams
    assert GenerationParams(n=3, best_of=3).streams
    assert not GenerationParams(n=3, best_of=4).streams
    assert not GenerationParams(num_beams=2).streams


def test_params_survive_the_way_through_plain_data() -> None:
    params = GenerationParams(
        logit_bias={5: -1.0},
        stop=("a", "b"),
        num_beams=4,
        early_stopping="never",
        contrastive=(ContrastiveParams(alpha=0.2), ContrastiveParams()),
        bad_words=((1, 2), (3,)),
        grammar=GrammarParams(kind="regex", value="[a-c]+"),
    )
    assert from_mapping(GenerationParams, to_mapping(params)) == params


def test_the_other_configs_check_their_ranges_too() -> None:
    with pytest.raises(ConfigError, match="alpha"):
        ContrastiveParams(alpha=1.5)
    with pytest.raises(ConfigError, match="temperature"):
        ContrastiveParams(temperature=1e-4)
    with pytest.raises(ConfigError, match="beta"):
        ContrastiveParams(beta=1e300)
    with pytest.raises(ConfigError, match="max_step_tokens"):
        EngineConfig(max_step_tokens=4, max_sequences=8)
    with pytest.raises(ConfigError, match="steps"):
        MaskPredictParams(steps=0)
