"""The declarations themselves: complete, resolved by name, and the page made of them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from option_grid import LAYERS, Case, config_of, single_cases

import xtdist
import xtdist.model
from xtdist.config import ConfigError, from_mapping
from xtdist.model import Decoder, Encoder, ModelConfig
from xtdist.model.options import OPTIONS, Option, is_active, resolve
from xtdist.model.options.examples import written
from xtdist.model.options.left_out import LEFT_OUT, LEFT_OUT_CLASSES
from xtdist.model.options.matrix import matrix
from xtdist.model.options.places import put
from xtdist.model.options.table import by_name


def test_the_page_of_options_is_the_one_that_the_declarations_make() -> None:
    page = Path(xtdist.model.__file__).parent / "OPTIONS.md"
    made = "python -m xtdist.model.options > xtdist/model/OPTIONS.md"
    assert page.read_text() == matrix(), f"run: {made}"


def test_names_are_unique_and_exclusions_name_options() -> None:
    assert len(by_name()) == len(OPTIONS)
    for option in OPTIONS:
        assert option.excludes.keys() <= by_name().keys()
        assert option.backends


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.samples], ids=lambda o: o.name)
def test_every_sample_turns_its_option_on(option: Option) -> None:
    for case in single_cases():
        if case.options == (option.name,):
            assert any(is_active(option, config_of(case, causal=c)) for c in stacks(case))


def stacks(case: Case) -> list[bool]:
    found = []
    for causal in (True, False):
        try:
            config_of(case, causal=causal)
        except ConfigError:
            continue
        found.append(causal)
    return found


def test_declarations_can_be_sent_to_other_processes() -> None:
    for option in OPTIONS:
        pickle.dumps(option.active)
        for row in (*option.rows, *option.wrapper):
            pickle.dumps((getattr(row, "into", None), getattr(row, "back", None)))


REFUSED: dict[str, tuple[type, dict[str, Any], str]] = {
    "backend": (
        Decoder,
        {"attn_flash": True, "attn_softclamp_logits": True},
        r"attn_flash=True\) can't honour logit softclamp.*drop attn_flash=True",
    ),
    "pair": (
        Decoder,
        {"pre_norm": False, "sandwich_norm": True},
        "sandwich norm and post-norm can't be combined: .*leave one of the two out",
    ),
    "future": (
        Decoder,
        {"mv_split_residual": True},
        "mean-variance split residual in a causal stack .*use an Encoder",
    ),
    "no past": (
        Encoder,
        {"attn_selective": True},
        "selective attention is defined for a causal stack only",
    ),
    "one place": (
        Decoder,
        {"use_rmsnorm": True, "use_scalenorm": True},
        "use_rmsnorm=True and use_scalenorm=True both choose norm.kind|.*both choose norm.kind",
    ),
    "no place": (Decoder, {"ff_glu": True, "ff_softclamp_value": 1.0}, "no effect on feedforward"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_work_together_is_refused_by_name_with_the_way_out(name: str) -> None:
    stack, keywords, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        stack(**LAYERS, **keywords)


def test_the_fastest_backend_that_honours_every_option_is_chosen() -> None:
    plain = config_of(Case(name="", options=()))
    assert resolve(plain).backends["attention"][0] == "sdpa"
    capped = config_of(Case(name="", options=(), layers={"attn_softclamp_logits": True}))
    assert "sdpa" not in resolve(capped).backends["attention"]
    crossed = config_of(
        Case(
            name="",
            options=(),
            layers={"cross_attend": True, "cross_attn_softclamp_logits": True},
        )
    )
    backends = resolve(crossed).backends
    assert backends["attention"][0] == "sdpa"
    assert "sdpa" not in backends["cross_attention"]


def test_what_is_left_out_has_a_reason() -> None:
    assert all(len(why) > 10 for why in LEFT_OUT.values())


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o.name)
def test_the_page_shows_what_to_write_in_a_config(option: Option) -> None:
    """Written one after the other over what they are part of, they turn the option on."""
    shown = [text.partition("=") for text in written(option)]
    if option.name.startswith("given "):
        assert not shown  # modules stand in no config
        return
    assert shown
    if not all(value for _, _, value in shown):
        return  # a place whose value is the user's alone
    assert any(turned_on(option, shown, parts) for parts in PARTS), shown


PARTS: list[dict[str, Any]] = [
    {"causal": causal, "feedforward": {"kind": kind}, "norm_position": position, **cross}
    for causal in (True, False)
    for cross in ({}, {"cross_attention": None})
    for kind in ("mlp", "glu")
    for position in ("pre", "pre_and_post")
]
AROUND = {
    "position": {"kind": "rotary"},
    "residual": {"kind": "plain"},
    "norm": {"kind": "layernorm"},
    "cross_attention": {},
    "memory_tokens": {"tokens": 2},
}
SIZES = {"dim": 64, "depth": 2, "heads": 4, "num_tokens": 40, "max_seq_len": 24}


def turned_on(option: Option, shown: list[tuple[str, str, str]], parts: dict[str, Any]) -> bool:
    tree: dict[str, Any] = copy.deepcopy({**SIZES, **AROUND, **parts})
    for place, _, value in shown:
        put(tree, place, yaml.safe_load(value))
    try:
        return is_active(option, from_mapping(ModelConfig, tree))
    except ConfigError:
        return False


def test_what_x_transformers_has_at_its_top_is_here_or_left_out_with_a_reason() -> None:
    xt = pytest.importorskip("x_transformers")
    theirs = {name for name in vars(xt) if isinstance(getattr(xt, name), type)}
    here = {name for name in theirs if hasattr(xtdist, name) or hasattr(xtdist.model, name)}
    assert theirs - here == LEFT_OUT_CLASSES.keys()
    assert all(f"`{name}`" in matrix() for name in LEFT_OUT_CLASSES)
