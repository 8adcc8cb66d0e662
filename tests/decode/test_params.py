from __future__ import annotations

from typing import Any

import pytest

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.decode import ContrastiveParams, EngineConfig, GenerationParams, MaskPredictParams

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
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_out_of_range_is_refused_by_name_in_python(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        GenerationParams(**{name: value})


@pytest.mark.parametrize(("name", "value"), [w for w in WRONG if w[1] == w[1]])
def test_a_value_out_of_range_is_refused_by_name_from_a_file(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        from_mapping(GenerationParams, {name: value})


def test_params_survive_the_way_through_plain_data() -> None:
    params = GenerationParams(
        logit_bias={5: -1.0},
        stop=("a", "b"),
        num_beams=4,
        early_stopping="never",
        contrastive=ContrastiveParams(alpha=0.2),
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
