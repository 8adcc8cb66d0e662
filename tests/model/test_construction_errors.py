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
    "narrow feed-forward": ({"ff_mult": 0.01}, "ff_mult=0.01: .*inner width of 0.32 at dim=32"),
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


CROSS = {"cross_attend": True, "only_cross": True}
OF_SELF_ATTENTION: dict[str, dict[str, Any]] = {
    "T5 bias": {"rel_pos_bias": True},
    "dynamic position bias": {"dynamic_pos_bias": True},
    "ALiBi": {"alibi_pos_bias": True},
    "polar positions": {"polar_pos_emb": True},
    "sliding window": {"attn_max_attend_past": 3},
    "residual attention": {"residual_attn": True},
    "CoPE": {"attn_use_cope": True},
    "selective attention": {"attn_selective": True},
    "forgetting attention": {"attn_data_dependent_alibi": True},
    "relative projection": {"attn_use_rel_proj_pos_bias": True},
}
OF_ANY_ATTENTION: dict[str, dict[str, Any]] = {
    "rotary positions": {"rotary_pos_emb": True},
    "value residual": {"add_value_residual": True},
    "grouped queries": {"attn_kv_heads": 2},
    "flash": {"attn_flash": True},
    "qk rmsnorm": {"attn_qk_rmsnorm": True},
    "memory keys and values": {"attn_num_mem_kv": 2},
}


@pytest.mark.parametrize("name", OF_SELF_ATTENTION)
@pytest.mark.parametrize("order", [CROSS, {"custom_layers": ("f",) * 4}], ids=["cross", "f"])
def test_options_of_self_attention_need_some(name: str, order: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{name} .*has no effect: .*no self attention"):
        Decoder(**SIZE, **order, **OF_SELF_ATTENTION[name])
    Decoder(**SIZE, **OF_SELF_ATTENTION[name])


@pytest.mark.parametrize("name", OF_ANY_ATTENTION)
def test_options_of_attention_need_one_that_has_them(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} .*has no effect: .*no self attention"):
        Decoder(**SIZE, custom_layers=("f", "f"), **OF_ANY_ATTENTION[name])
    stack = Decoder(**SIZE, **CROSS, **OF_ANY_ATTENTION[name])  # cross attention takes it over
    assert all(p.numel() for p in stack.parameters())


def test_what_cross_attention_does_not_take_over_has_no_effect_without_self_attention() -> None:
    with pytest.raises(ConfigError, match=r"grouped queries .*attn_kv_heads.* no effect"):
        Decoder(**SIZE, **CROSS, attn_kv_heads=2, cross_attn_kv_heads=None)
    with pytest.raises(ConfigError, match=r"cross attention .*cross_attend.* no cross attention"):
        Decoder(**SIZE, cross_attend=True, custom_layers=("a", "f"))


@pytest.mark.parametrize("wrapper", [{"max_mem_len": 4}, {"num_memory_tokens": 2}])
def test_memories_need_self_attention(wrapper: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrapper))}.*no self attention"):
        TransformerWrapper(**NAMES, **wrapper, attn_layers=Decoder(**SIZE, **CROSS))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"weight_tie_layers": True}, "U-Net skips and tied layers"),
        ({"layers_execute_order": (2, 3, 0, 1)}, "U-Net skips and order of execution"),
        ({"depth": 1}, "unet_skips: got depth=1"),
        ({"custom_layers": ("a", "f", "f")}, "unet_skips: got .*3 sublayers"),
    ],
)
def test_a_u_needs_blocks_in_their_order(order: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Decoder(**{**SIZE, "unet_skips": True, **order})


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
