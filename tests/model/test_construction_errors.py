"""Keywords that can't be honoured: one clear error when the model is built, by their name."""

from __future__ import annotations

from typing import Any

import pytest

from xtdist.config import ConfigError
from xtdist.model import CrossAttender, Decoder, Encoder, TransformerWrapper

SIZE: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
NAMES: dict[str, Any] = {"num_tokens": 40, "max_seq_len": 24}

# keywords of the layers, and what the error says
LAYERS: dict[str, tuple[dict[str, Any], str]] = {
    "narrow feed-forward": ({"ff_mult": 0.01}, "ff_mult=0.01: .*inner width below 1 at dim=32"),
    "shift": ({"shift_tokens": 32}, "shift_tokens: got 32, .*33 groups"),
    "shift of one": ({"shift_tokens": (0, 0, 0, 40)}, "shift_tokens: got 40"),
    "scale as text": ({"depth_scale_residual": "a"}, "depth_scale_residual: got 'a'; give True"),
    "kwargs as number": ({"residual_fn_kwargs": 3}, "residual_fn_kwargs: got 3; give a mapping"),
    "kwargs of none": (
        {"residual_fn_kwargs": {"learned": True}},
        "no effect without mv_split_residual=True or gated_multi_residual=True",
    ),
    "unknown kwarg": (
        {"gated_multi_residual": True, "residual_fn_kwargs": {"a": 1}},
        "unknown name 'a'; known: .*read_gate_rank",
    ),
    "kwarg of another residual": (
        {
            "gated_multi_residual": True,
            "num_residual_streams": 2,
            "residual_fn_kwargs": {"read_gate_rank": 3, "learned": True},
        },
        "no effect on residual=gated_multi",
    ),
    "integrator kwargs": (
        {"attn_aggregated_residual_kwargs": {"lora_rank": 4}},
        "no effect without attn_aggregated_residuals=True",
    ),
    "forgetting kwargs": (
        {"attn_data_dependent_alibi_kwargs": {"post_log_scale": 0.5}},
        "attn_data_dependent_alibi_kwargs=.* has no effect",
    ),
    "unknown forgetting kwarg": (
        {"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_kwargs": {"a": 0.5}},
        "unknown name 'a'; known: bias_init, post_log_scale",
    ),
    "rotated heads": (
        {"rotary_pos_emb": True, "rotate_num_heads": 5},
        "rotate_num_heads=5: .*5 rotated heads of heads=4",
    ),
    "no streams": ({"num_residual_streams": 0}, "num_residual_streams: got 0; give a number"),
    "streams as text": ({"num_residual_streams": "2"}, "num_residual_streams: got '2'"),
    "macaron": ({"only_attn": True, "macaron": True}, "macaron=True: .*only_attention leaves out"),
    "norms": ({"pre_norm": False, "pre_and_post_norm": True}, "with pre_norm=False contradict"),
    "no order": ({"layers_execute_order": ()}, r"layers_execute_order=\(\): .*got \(\)"),
    "no layers": ({"custom_layers": ()}, r"custom_layers=\(\): .*got \(\)"),
    "LIMe, tied": (
        {"integrate_layers": True, "weight_tie_layers": True},
        "LIMe and tied layers can't be combined",
    ),
    "LIMe, order": (
        {"integrate_layers": True, "layers_execute_order": (0, 1)},
        "LIMe and order of execution can't be combined",
    ),
    "attention over layers, tied": (
        {"attn_aggregated_residuals": True, "weight_tie_layers": True},
        "attention over layers and tied layers can't be combined",
    ),
    "attention over layers, order": (
        {"attn_aggregated_residuals": True, "layers_execute_order": (0, 1)},
        "attention over layers and order of execution can't be combined",
    ),
    "cross keyword": (
        {"cross_attn_dim_head": 16},
        "cross_attn_dim_head=16 has no effect without cross_attend=True",
    ),
    "cross keyword without its option": (
        {"cross_attend": True, "cross_attn_logit_softclamp_value": 3.0},
        "no effect without cross_attn_softclamp_logits=True",
    ),
    "keyword of a place": ({"attn_max_attend_past": -1}, "attn_max_attend_past=-1: attention.win"),
    "keyword of cross attention": (
        {"cross_attend": True, "cross_attn_dim_head": -1},
        "Decoder: cross_attn_dim_head=-1: cross_attention.dim_head: got -1",
    ),
    "inherited keyword": (
        {"cross_attend": True, "attn_dim_head": -1},
        "Decoder: attn_dim_head=-1: cross_attention.dim_head: got -1",
    ),
    "value of a switch": (
        {"softclamp_output": True, "softclamp_output_value": "a"},
        "Decoder: softclamp_output_value='a': softclamp: got \"a\"",
    ),
    "same name": ({"dim": 0}, "^Decoder: dim: got 0; it should be greater than 0$"),
    "one or many": (
        {"shift_tokens": "a"},
        '^Decoder: shift_tokens: got "a"; it should be a valid integer, or a valid array$',
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_stack_refuses_by_the_keyword(name: str) -> None:
    keywords, message = LAYERS[name]
    with pytest.raises(ConfigError, match=message):
        Decoder(**{**SIZE, **keywords})


WRAPPER: dict[str, tuple[dict[str, Any], str]] = {
    "table with a dot": ({"embed_num_tokens": {"a.b": 3}}, "embed_num_tokens=.*'a.b' can't be"),
    "table of a module": ({"embed_num_tokens": {"keys": 3}}, "'keys' can't be that of a module"),
    "table in training": ({"embed_num_tokens": {"training": 3}}, "'training' can't be"),
    "tables as list": ({"embed_num_tokens": [3]}, "embed_num_tokens: got .3.; give a mapping"),
    "table by number": ({"embed_num_tokens": {3: 4}}, "got 3 for a name"),
    "no positions": (
        {"scaled_sinu_pos_emb": True, "use_abs_pos_emb": False},
        "no effect with use_abs_pos_emb=False",
    ),
    "shift without memory": ({"shift_mem_down": 1}, "it needs max_mem_len"),
    "shift too far": ({"shift_mem_down": 2, "max_mem_len": 4}, "and 2 self attentions"),
}


@pytest.mark.parametrize("name", WRAPPER)
def test_a_model_refuses_by_the_keyword(name: str) -> None:
    keywords, message = WRAPPER[name]
    with pytest.raises(ConfigError, match=message):
        TransformerWrapper(**NAMES, **keywords, attn_layers=Decoder(**SIZE))


def test_a_model_wants_a_stack() -> None:
    with pytest.raises(TypeError, match="attn_layers: got a dict; give a Decoder"):
        TransformerWrapper(**NAMES, attn_layers=SIZE)  # type: ignore[arg-type]


def test_both_ways_of_a_shift_count_in_an_encoder() -> None:
    Decoder(**SIZE, shift_tokens=16)
    with pytest.raises(ConfigError, match="33 groups"):
        Encoder(**SIZE, shift_tokens=16)


def test_keywords_of_cross_attention_are_taken_where_there_is_some() -> None:
    stack = CrossAttender(**SIZE, cross_attn_dim_head=16)
    assert stack.config.cross_attention is not None
    assert stack.config.cross_attention.dim_head == 16
