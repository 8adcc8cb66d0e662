"""What a wrong model says: the place as it was written, and the names that others use."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import xtdist.model
from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.model import Decoder, Encoder, ModelConfig, build_model
from xtdist.model.hints import CUSTOMARY, explain_key
from xtdist.model.options import OPTIONS, resolve
from xtdist.model.options.base import Row
from xtdist.model.options.places import exists
from xtdist.objective import AutoregressiveWrapper
from xtdist.train.spec import RunSpec

SIZE: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attention": {"dim_head": 8}}
CONDITIONED = "norm.kind=adaptive_layernorm or norm.kind=adaptive_rmsnorm or branch_scale.kind=ada"


def run_with(**model: Any) -> RunSpec:
    tree = {"name": "x", "data": {"path": "d"}, "loop": {"steps": 1}, "model": {**SIZE, **model}}
    return from_mapping(RunSpec, tree)


# fields of the model, and what a run says of them
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pair": (
        {"residual_attention": True, "attention": {"backend": "sdpa"}},
        "^model.residual_attention: residual attention and flash can't be combined: .*residual "
        "attention: residual_attention=true, keyword residual_attn; flash: attention.backend=sdpa, "
        "keyword attn_flash",
    ),
    "width of a tied embedding": (
        {"embedding": {"dim": 16}, "tie_embedding": True},
        r"^model.embedding.dim: .*\(embedding width: embedding.dim=16, keyword emb_dim; tied embed",
    ),
    "no head": (
        {"head": {"output": "hidden"}, "tie_embedding": True},
        "^model.head.output: .*head.output=hidden, keyword return_only_embed",
    ),
    "future": (
        {"residual": {"kind": "mv_split"}},
        "^model.residual.kind: .*leave out residual.kind=mv_split, keyword mv_split_residual",
    ),
    "backend": (
        {"attention": {"backend": "sdpa", "softclamp": 3.0}},
        "^model.attention.backend: .*leave out attention.softclamp=3.0, keyword attn_softcl",
    ),
    "backend of a context": (
        {"cross_attention": {"backend": "sdpa", "softclamp": 3.0}},
        "^model.cross_attention.backend: .*leave out cross_attention.softclamp=3.0",
    ),
    "condition": ({"condition_mlp": 3}, f"^model.condition_mlp: got 3; .*without {CONDITIONED}"),
    "width of no context": ({"dim_context": 7}, "^model.dim_context: .*without cross_attention"),
    "dropout of no context": ({"context_dropout": 0.2}, "^model.context_dropout: .*no effect"),
    "scores of no context": ({"cross_residual_attention": True}, "^model.cross_res.*no effect"),
    "gate": (
        {"attention": {"gate_activation": "silu"}},
        "^model.attention.gate_activation: got silu; it has no effect without attention.gate or ",
    ),
    "gate of a context": (
        {"cross_attention": {"gate_activation": "silu"}},
        "^model.cross_attention.gate_activation: .*without cross_attention.gate or cross_attention",
    ),
    "pooling": ({"pool": {"kind": "cls"}}, "^model.pool.kind: got cls; "),
    "loop": ({"loop": {"kind": "looped"}}, "^model.loop.kind: got looped with norm_position=pre; "),
    "groups of a context": (
        {"cross_attention": {"cosine": {"groups": 7}}},
        "^model.cross_attention.cosine.groups: 7 does not divide",
    ),
    "expert": (
        {"feedforward": {"kind": "moe", "expert": {"kind": "mlp", "activation": "solu"}}},
        "^model.feedforward.expert.activation: got 'solu'",
    ),
    "scaling": (
        {"position": {"kind": "rotary", "scaling": {"kind": "linear", "factor": 2.0}}},
        '^model.position.scaling.kind: got "linear"; that is position.interpolation',
    ),
    "another part": (
        {"position": {"kind": "alibi"}},
        '^model.position.kind: got "alibi"; alibi is one of position_bias: {kind: alibi}',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_names_the_place_that_was_written(name: str) -> None:
    fields, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        run_with(**fields)


def test_what_has_an_effect_is_taken() -> None:
    adaptive = {"kind": "adaptive_rmsnorm"}
    for fields in (
        {"condition_mlp": 3, "norm": adaptive},
        {"condition_mlp": 3, "branch_scale": {"kind": "adaptive_layerscale"}},
        {"dim_context": 7, "cross_attention": {}, "context_dropout": 0.2},
        {"attention": {"gate_activation": "silu", "output_gate": {}}},
    ):
        resolve(ModelConfig(**{**SIZE, **fields}))


def test_needed_places_exist() -> None:
    places = [place for option in OPTIONS for place in option.needed]
    assert places
    assert all(exists(ModelConfig, to_mapping(ModelConfig(**SIZE)), place) for place in places)


@pytest.mark.parametrize(
    "fields",
    [
        {"position": None},
        {"causal": "false"},
        {"norm_position": "sandwich"},
        {"tie_embedding": "no"},
        {"recompute": True},
        {"layer_dropout": 1.5},
        {"logit_scale": -3.0},
        {"emb_dropout": 2.0},
        {"softclamp": -3.0},
        {"branch_init": "zeros"},
        {"heads": 0},
        {"depth": "2"},
        {"dim": 0},
        {"norm": "rmsnorm"},
        {"attention": {"backend": "flash"}},
        {"attention": {"window": -4}},
        {"attention": {"kv_heads": 3}},
    ],
    ids=str,
)
def test_a_model_that_is_made_in_python_is_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**{**SIZE, **fields})
    assert str(caught.value).startswith(next(iter(fields)))


def test_parts_of_a_model_may_be_mappings() -> None:
    made = ModelConfig(**SIZE, position={"kind": "learned"}, num_tokens=9, max_seq_len=5)  # type: ignore[arg-type]
    assert made == from_mapping(ModelConfig, to_mapping(made))
    assert build_model(made).state_dict()["position_embedding.weight"].shape == (5, 32)


# what others call it, and what a config (or a stack) answers
IN_CONFIG = {
    "rotary_pos_emb": "x-transformers' rotary_pos_emb is position.kind=rotary here",
    "ff_glu": "feedforward.kind=glu",
    "attn_kv_heads": "attention.kv_heads",
    "cross_attn_kv_heads": "cross_attention.kv_heads",
    "use_rmsnorm": "norm.kind=rmsnorm",
    "alibi_pos_bias": "position_bias={kind: alibi}",
    "attn_flash": "attention.backend=sdpa",
    "num_memory_tokens": "memory_tokens",
    "attn_onnxable": "leaves out .*: the causal mask needs no special form",
    "num_heads": "it is heads here",
    "rope_theta": "it is position.theta here",
    "kv_heads": "it is attention.kv_heads here",
    "memory_kv": "did you mean attention.memory_kv",
}
IN_STACK: dict[str, tuple[Any, str]] = {
    "kv_heads": (2, "it is attn_kv_heads here$"),
    "num_heads": (4, "it is heads here$"),
    "attn_window": (4, "it is attn_max_attend_past here$"),
    "sliding_window": (4, "it is attn_max_attend_past here$"),
    "swiglu": (True, "it is ff_glu=True, ff_swish=True here$"),
    "rope_theta": (5.0, "has no keyword: it is position.theta in a ModelConfig or YAML$"),
    "attention": ({"window": 4}, "part of a ModelConfig; its keywords here: attn_max_attend_past$"),
    "norm": ("rmsnorm", "part of a ModelConfig; its keywords here: use_rmsnorm$"),
    "residual": ("gru", "its keywords here: gate_residual$"),
    "dropout": (0.1, "did you mean 'attn_dropout' or 'ff_dropout'\\?$"),
    "atn_flash": (True, "did you mean 'attn_flash'\\?$"),
    "zzzz": (1, "all keywords are in xtdist/model/OPTIONS.md; what x-transformers lacks"),
}


@pytest.mark.parametrize("key", IN_CONFIG)
def test_a_config_says_where_it_has_what_others_call_otherwise(key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: unknown key; .*{IN_CONFIG[key]}"):
        ModelConfig(**{**SIZE, key: 2})


@pytest.mark.parametrize("keyword", IN_STACK)
def test_a_stack_says_what_it_calls_it(keyword: str) -> None:
    value, message = IN_STACK[keyword]
    with pytest.raises(TypeError, match=f"unknown keyword '{keyword}'; .*{message}"):
        Decoder(dim=32, depth=2, **{keyword: value})


def test_every_keyword_and_every_customary_name_leads_to_a_place() -> None:
    tree = to_mapping(ModelConfig(**SIZE))
    keywords = [
        row.keyword
        for option in OPTIONS
        for row in (*option.rows, *option.wrapper)
        if isinstance(row, Row)
    ]
    assert all(explain_key(keyword) for keyword in keywords)
    for _, place in CUSTOMARY.values():
        assert exists(ModelConfig, tree, place.partition("=")[0]), place


def test_numbers_of_arrays_are_named() -> None:
    with pytest.raises(ConfigError, match=r"Decoder: dim=.*: dim=.*64\) is a numpy.int64; give pl"):
        Decoder(dim=np.int64(64), depth=2)


def test_what_is_no_model_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="build_model: got a dict; give a ModelConfig"):
        build_model({"dim": 64, "depth": 2})  # type: ignore[arg-type]
    for stack in (Decoder, Encoder):
        with pytest.raises(ConfigError, match=r"AutoregressiveWrapper: got .*; give Tr"):
            AutoregressiveWrapper(stack(dim=32, depth=2))  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["attention", "position", "norm", "feedforward", "residual"])
def test_configs_of_parts_come_from_where_one_looks(module: str) -> None:
    home = importlib.import_module(f"xtdist.nn.{module}")
    names = [name for name in home.__all__ if hasattr(getattr(home, name), "__dataclass_fields__")]
    names = [name for name in names if name.endswith("Config")]
    assert names
    for name in names:
        assert getattr(xtdist.model, name) is getattr(home, name)
