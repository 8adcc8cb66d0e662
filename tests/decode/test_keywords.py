from __future__ import annotations

from typing import Any

import pytest
import torch
from x_transformers import autoregressive_wrapper as theirs

from xtdist.config import ConfigError
from xtdist.decode import ContrastiveParams, GenerationParams
from xtdist.decode.keywords import generation_params
from xtdist.decode.sampling import Row, Sampler

V = 50


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("top_k", {}),
        ("top_k", {"k": 7}),
        ("top_k", {"k": 70}),
        ("top_k", {"frac_num_tokens": 0.31}),
        ("top_p", {}),
        ("top_p", {"thres": 0.4}),
        ("min_p", {}),
        ("min_p", {"min_p": 0.3}),
        ("top_a", {}),
        ("top_a", {"min_p_ratio": 0.7}),
    ],
)
def test_their_filters_keep_the_same_tokens(name: str, arguments: dict[str, float]) -> None:
    keywords = {"filter_logits_fn": name, "filter_kwargs": arguments}
    params = generation_params(1, keywords, num_tokens=V)
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(1)) * 2
    kept = getattr(theirs, name)(logits.clone(), **arguments).isfinite()[0]
    rows = [Row(params, seed, (0,), 1) for seed in range(4000)]
    drawn = Sampler([params] * 4000, logits.device).draw(logits.expand(4000, -1).clone(), rows)
    likely = logits[0].softmax(-1) > 2e-3
    seen = torch.zeros(V, dtype=torch.bool)
    seen[drawn] = True
    assert not (seen & ~kept).any()
    assert not (kept & likely & ~seen).any()


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, {"top_k": 5}),
        ({"temperature": 0.0}, {"temperature": 0.0}),
        ({"num_beams": 3}, {"num_beams": 3}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"filter_logits_fn": None}, {}),
        ({"contrastive": ContrastiveParams()}, {"contrastive": ContrastiveParams()}),
        (
            {"contrastive_decode_kwargs": {"beta": 0.2, "alpha": 0.3}},
            {"contrastive": ContrastiveParams(beta=0.2, alpha=0.3)},
        ),
        ({"typical_p": 0.5, "n": 2}, {"typical_p": 0.5, "n": 2}),
        (
            {"filter_logits_fn": "top_p", "temperature": 0.5},
            {"top_p": 0.9, "temperature": 0.5, "temperature_last": True},
        ),
        (
            {"filter_logits_fn": "min_p", "temperature_last": False},
            {"min_p": 0.1, "temperature_last": False},
        ),
        ({"filter_logits_fn": "top_k", "temperature": 2.0}, {"top_k": 5, "temperature": 2.0}),
        ({"filter_logits_fn": "top_a", "temperature": 0.0}, {"top_a": 0.02, "temperature": 0.0}),
        ({"temperature": 0.0, "filter_kwargs": {"k": 3}}, {"temperature": 0.0}),
        (
            {"contrastive": ContrastiveParams(), "filter_kwargs": {"k": 3}},
            {"contrastive": ContrastiveParams()},
        ),
        ({"filter_kwargs": {"k": 3}}, {"top_k": 3}),
        (
            {"filter_logits_fn": "top_p", "top_k": 7, "temperature": 0.5},
            {"top_p": 0.9, "top_k": 7, "temperature": 0.5, "temperature_last": True},
        ),
        (
            {"filter_logits_fn": "top_k", "min_p": 0.3, "temperature": 0.5},
            {"top_k": 5, "min_p": 0.3, "temperature": 0.5},
        ),
    ],
)
def test_their_default_filter_acts_where_nothing_else_is_said(
    keywords: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = generation_params(9, keywords, num_tokens=V)
    assert found == GenerationParams(max_tokens=9, **expected)


@pytest.mark.parametrize(
    ("amateurs", "keywords", "expected"),
    [
        (1, {}, ContrastiveParams()),
        (2, {}, (ContrastiveParams(), ContrastiveParams())),
        (
            2,
            {"contrastive_decode_kwargs": ({"beta": 1.0}, {"alpha": 0.3})},
            (ContrastiveParams(beta=1.0), ContrastiveParams(alpha=0.3)),
        ),
        (1, {"contrastive_decode_kwargs": ({"beta": 1.0},)}, ContrastiveParams(beta=1.0)),
        (2, {"contrastive_decode_kwargs": {"beta": 1}}, (ContrastiveParams(beta=1),) * 2),
        (1, {"draft_tokens": 3}, None),
        (1, {"draft_tokens": 3, "contrastive_decode_kwargs": {}}, ContrastiveParams()),
        (1, {"contrastive": ContrastiveParams(beta=2.0)}, ContrastiveParams(beta=2.0)),
    ],
)
def test_amateurs_are_contrasted_with_unless_they_draft(
    amateurs: int, keywords: dict[str, Any], expected: Any
) -> None:
    """S7"""
    found = generation_params(9, keywords, num_tokens=V, amateurs=amateurs)
    assert found.contrastive == expected
    assert found.top_k == (0 if expected else 5)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"temprature": 1.0}, "'temperature'"),
        ({"return_intermediates": True}, "leaves out 'return_intermediates'"),
        ({"mask": None}, "prompt_lens"),
        ({"logprobs": 1}, "tokens are all"),
        ({"prepend_embeds": 1}, "does not carry"),
        ({"max_tokens": 3}, "max_tokens"),
    ],
)
def test_an_unknown_keyword_names_the_nearest(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(TypeError, match=named):
        generation_params(9, keywords, num_tokens=V)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"filter_logits_fn": "top_a", "filter_kwargs": {"min_p_pow": 3.0}}, "min_p_pow"),
        ({"filter_logits_fn": "top_b"}, "function"),
        ({"contrastive_decode_kwargs": ({}, {})}, "got 2 for 1 amateurs"),
        ({"contrastive_decode_kwargs": {"gamma": 1.0}}, "alpha, beta"),
        ({"contrastive_decode_kwargs": {}, "contrastive": ContrastiveParams()}, "leave one"),
        ({"filter_logits_fn": "top_p", "filter_kwargs": {"k": 3}}, "thres"),
        ({"top_p": 0.5, "filter_kwargs": {"k": 3}}, "filter_kwargs"),
        ({"num_beams": 2, "filter_kwargs": {"k": 3}}, "filter_kwargs"),
        ({"filter_logits_fn": None, "filter_kwargs": {"k": 3}}, "filter_kwargs"),
        ({"temperature": 0.0, "filter_kwargs": {"thres": 0.3}}, "no 'thres'"),
        ({"filter_kwargs": [1]}, r"filter_kwargs: got \[1\]"),
        ({"filter_logits_fn": torch.relu, "filter_kwargs": 3}, "filter_kwargs: got 3"),
        ({"filter_kwargs": {"k": 0}}, "k: got 0"),
        ({"filter_kwargs": {"k": 2.5}}, "k: got 2.5"),
        ({"filter_kwargs": {"frac_num_tokens": 0.0}}, "frac_num_tokens: got 0.0"),
        ({"filter_kwargs": {"frac_num_tokens": float("nan")}}, "frac_num_tokens: got nan"),
        ({"filter_logits_fn": "top_k", "top_k": 7}, "top_k is given too"),
        ({"filter_logits_fn": "top_p", "top_p": 0.3}, "top_p is given too"),
        ({"filter_logits_fn": "top_p", "min_p": 0.3, "temperature": 2.0}, "after the temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_what_can_not_be_honoured_is_refused(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        generation_params(9, keywords, num_tokens=V)
