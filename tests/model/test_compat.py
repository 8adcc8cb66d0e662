"""x-transformers' keywords: same names, same defaults, there and back, and what is refused."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
from option_grid import LAYERS, WRAPPER, Case, config_of, refusal, single_cases

from xtdist.config import ConfigError
from xtdist.model import Decoder, ModelConfig, TransformerWrapper
from xtdist.model.compat_back import keywords_of
from xtdist.model.options.base import INHERIT, REQUIRED, Row
from xtdist.model.options.left_out import LEFT_OUT
from xtdist.model.options.table import layers_rows, wrapper_rows
from xtdist.nn.position.config import RotaryConfig

xt = pytest.importorskip("x_transformers")

CASES = [case for case in single_cases() if not case.config]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_keywords_survive_the_way_to_a_config_and_back(case: Case) -> None:
    causal = not refusal(case, causal=True)
    config = config_of(case, causal=causal)
    layers, wrapper = keywords_of(config)
    again = config_of(Case(name="", options=(), layers=layers, wrapper=wrapper), causal=causal)
    assert again == config


def known_keywords() -> dict[str, Any]:
    """Every keyword of x-transformers' layers and wrapper with its default."""
    parts = [xt.Decoder, xt.x_transformers.AttentionLayers, xt.TransformerWrapper]
    attention, feedforward = xt.x_transformers.Attention, xt.x_transformers.FeedForward
    known: dict[str, Any] = {}
    for prefix, owner in itertools.chain(
        (("", part) for part in parts),
        (("attn_", attention), ("ff_", feedforward), ("cross_attn_", attention)),
    ):
        for name, parameter in inspect.signature(owner.__init__).parameters.items():
            known.setdefault(prefix + name, parameter.default)
    return known


def test_every_keyword_and_default_of_the_table_is_x_transformers_own() -> None:
    known = known_keywords()
    for row in (*layers_rows(), *wrapper_rows()):
        if not isinstance(row, Row):
            continue
        assert row.keyword in known
        if row.default is REQUIRED:
            assert known[row.keyword] in (inspect.Parameter.empty, None), row.keyword
        elif row.default is not INHERIT:
            assert known[row.keyword] == row.default, row.keyword
            assert type(known[row.keyword]) in (type(row.default), int), row.keyword


def test_nothing_of_theirs_is_forgotten() -> None:
    rows = {row.keyword for row in (*layers_rows(), *wrapper_rows()) if isinstance(row, Row)}
    arguments = {"self", "kwargs", "verbose", "attn_layers", "token_emb", "to_logits"}
    theirs = {name for name in known_keywords() if not name.startswith("cross_attn_")}
    theirs = {name for name in theirs if name.rpartition("_")[2] != "self"}
    assert theirs - rows - arguments <= LEFT_OUT.keys()


def test_a_keyword_that_is_left_out_is_theirs_and_says_why() -> None:
    assert LEFT_OUT.keys() <= known_keywords().keys()
    with pytest.raises(
        TypeError, match="leaves out 'attn_custom_attn_fn': a module or function is not"
    ):
        Decoder(**LAYERS, attn_custom_attn_fn=print)


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(
        TypeError, match=r"Decoder: unknown keyword 'rotary_pos_em'.*'rotary_pos_emb'"
    ):
        Decoder(**LAYERS, rotary_pos_em=True)
    with pytest.raises(TypeError, match="did you mean 'tie_embedding'"):
        TransformerWrapper(**WRAPPER, attn_layers=Decoder(**LAYERS), tie_embeddings=True)
    with pytest.raises(TypeError, match="missing keyword 'depth'"):
        Decoder(dim=8)


BAD_VALUES = {
    "without effect": ({"rotary_emb_dim": 8}, "no effect without rotary_pos_emb=True"),
    "wrong type": ({"attn_dim_head": "16"}, "attention.dim_head: got"),
    "no boolean": ({"use_rmsnorm": "yes"}, "give True or False"),
    "kv heads": ({"attn_kv_heads": 3}, "must divide heads"),
    "two positions": (
        {"rotary_pos_emb": True, "disable_abs_pos_emb": False},
        "rotary_pos_emb and learned positions together",
    ),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_value_that_can_not_be_honoured_is_refused(case: str) -> None:
    keywords, message = BAD_VALUES[case]
    with pytest.raises(ConfigError, match=message):
        Decoder(**{**LAYERS, **keywords})


def test_a_config_beyond_the_keywords_says_what_has_none() -> None:
    position = RotaryConfig(layout="halves")
    config = ModelConfig(dim=32, depth=1, num_tokens=9, max_seq_len=8, position=position)
    with pytest.raises(ConfigError, match=r"position\.layout='halves'"):
        keywords_of(config)
