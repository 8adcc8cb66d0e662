"""Options of one attention layer: sizes, projections, norms, and what else there is to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.config import ConfigError
from xtdist.model.options.base import Option, Row, Sample, elsewhere
from xtdist.model.options.weights import Context, Heads, Part, Rule


def key_rows(context: Context) -> int:
    """Rows of the key projection."""
    return context.kv_heads * int(context.attention.dim_head)


def value_rows(context: Context) -> int:
    """Rows of the value projection."""
    return context.kv_heads * int(context.attention.value_dim_head or context.attention.dim_head)


def latent_width(dim: int | None, given: Mapping[str, Any]) -> int:
    """The width of a bottleneck that is asked for."""
    if dim is None:
        raise ConfigError("attn_use_latent_q=True needs attn_dim_latent_q (_kv: likewise), a width")
    return dim


def has_latent_q(latent: Mapping[str, Any] | None, tree: Mapping[str, Any]) -> bool:
    """The way back of ``attn_use_latent_q``."""
    return latent is not None and latent["q_dim"] is not None


def has_latent_kv(latent: Mapping[str, Any] | None, tree: Mapping[str, Any]) -> bool:
    """The way back of ``attn_use_latent_kv``."""
    return latent is not None and latent["kv_dim"] is not None


def has_window(config: Any) -> bool:
    """A window of 0 keys back is one too."""
    return config.attention.window is not None


SIZES: tuple[Option, ...] = (
    Option(
        name="attention",
        about="softmax attention over heads",
        active="attention",
        paper="1706.03762",
        rows=(Row("attn_dim_head", "attention.dim_head", 64),),
        samples=(Sample(),),
        weights=(
            Rule(
                "attention",
                (
                    Part("to_q.weight", (Heads(0),)),
                    Part("to_k.weight", (), key_rows),
                    Part("to_v.weight", (), value_rows),
                ),
                "projection.weight",
            ),
            Rule("attention", "to_out.weight", "to_out.weight", (Heads(1),)),
        ),
    ),
    Option(
        name="cross attention",
        about="attend to a context too",
        active="cross_attention",
        acts_in="c",
        paper="1706.03762",
        rows=(
            Row("cross_attend", "cross_attention", False, {False: None, True: {}}),
            Row("cross_attn_dim_context", "dim_context", None, needs="cross_attend"),
        ),
        needed={"dim_context": "cross_attention"},
        samples=(
            Sample({"cross_attend": True}, inputs=("context",)),
            Sample(
                {
                    "cross_attend": True,
                    "attn_kv_heads": 2,
                    "cross_attn_kv_heads": 1,
                    "cross_attn_dim_head": 8,
                    "cross_attn_dim_context": 32,
                },
                inputs=("context",),
            ),
        ),
        weights=(
            Rule("cross_attention", "to_q.weight", "projection.to_q.weight", (Heads(0),)),
            Rule(
                "cross_attention",
                (Part("to_k.weight", (), key_rows), Part("to_v.weight", (), value_rows)),
                "projection.to_kv.weight",
            ),
        ),
    ),
    Option(
        name="flash",
        about="fused kernels, no table of scores in memory",
        active="attention.backend=sdpa",
        paper="2205.14135",
        rows=(Row("attn_flash", "attention.backend", False, {False: "auto", True: "sdpa"}),),
        samples=(Sample({"attn_flash": True}),),
        differs="without attn_flash the fastest backend that honours every option is chosen",
    ),
    Option(
        name="grouped queries",
        about="query heads share keys and values (GQA, MQA)",
        active="attention.kv_heads",
        paper="2305.13245",
        rows=(
            Row("attn_kv_heads", "attention.kv_heads", None),
            Row("attn_one_kv_head", "attention.kv_heads", False, {True: 1}, back=elsewhere),
        ),
        samples=(
            Sample({"attn_kv_heads": 2}),
            Sample({"attn_kv_heads": 1, "attn_flash": True}),
            Sample({"attn_one_kv_head": True}),
        ),
        differs="neighbouring query heads share a key head (there: heads 0, hk, 2 hk …)",
    ),
    Option(
        name="value channels",
        about="values of another width than keys",
        active="attention.value_dim_head",
        tier=2,
        rows=(Row("attn_value_dim_head", "attention.value_dim_head", None),),
        samples=(Sample({"attn_value_dim_head": 24}),),
    ),
    Option(
        name="attention dropout",
        about="drop attention weights in training",
        active="attention.dropout",
        rows=(Row("attn_dropout", "attention.dropout", 0.0),),
        samples=(Sample({"attn_dropout": 0.1}),),
        backends=frozenset({"sdpa", "eager"}),
    ),
    Option(
        name="attention output dropout",
        about="drop channels of the layer's output in training",
        active="attention.dropout_out",
        rows=(Row("attn_sublayer_dropout", "attention.dropout_out", 0.0),),
        samples=(Sample({"attn_sublayer_dropout": 0.1}),),
    ),
    Option(
        name="zero attention output",
        about="attention starts as nothing",
        active="attention.zero_init_out",
        tier=2,
        rows=(Row("attn_zero_init_output", "attention.zero_init_out", False),),
        samples=(Sample({"attn_zero_init_output": True}),),
    ),
    Option(
        name="sliding window",
        about="a token reads so many keys back",
        active=has_window,
        acts_in="a",
        paper="2310.06825",
        rows=(Row("attn_max_attend_past", "attention.window", None, self_only=True),),
        samples=(
            Sample({"attn_max_attend_past": 4}),
            Sample({"attn_max_attend_past": 4, "attn_flash": True}),
        ),
        differs="counts real tokens, not padding between them, in a causal stack (else places, "
        "whatever stands there); of self attention alone (there, the context is cut by position "
        "too)",
    ),
)

NORMS: tuple[Option, ...] = (
    Option(
        name="qk rmsnorm",
        about="queries and keys normalized for each head",
        active="attention.qk_rmsnorm",
        paper="2302.05442",
        rows=(Row("attn_qk_rmsnorm", "attention.qk_rmsnorm", False),),
        samples=(
            Sample({"attn_qk_rmsnorm": True}),
            Sample({"attn_qk_rmsnorm": True, "attn_kv_heads": 2}),
        ),
        weights=(
            Rule("attention", "q_rmsnorm.gamma", "norms.query.gain", (Heads(0),)),
            Rule("attention", "k_rmsnorm.gamma", "norms.key.gain"),
        ),
        excludes={"k rmsnorm": "both normalize the keys; leave out one of the two"},
    ),
    Option(
        name="k rmsnorm",
        about="keys normalized for each head",
        active="attention.k_rmsnorm",
        paper="2302.05442",
        tier=3,
        rows=(Row("attn_k_rmsnorm", "attention.k_rmsnorm", False),),
        samples=(Sample({"attn_k_rmsnorm": True}),),
        weights=(Rule("attention", "k_rmsnorm.gamma", "norms.key.gain"),),
    ),
    Option(
        name="value rmsnorm",
        about="values normalized for each head",
        active="attention.value_rmsnorm",
        tier=3,
        rows=(Row("attn_value_rmsnorm", "attention.value_rmsnorm", False),),
        samples=(Sample({"attn_value_rmsnorm": True}),),
        weights=(Rule("attention", "value_rmsnorm.gamma", "norms.value.gain"),),
        differs="works with grouped queries (there: a shape error)",
    ),
    Option(
        name="cosine attention",
        about="queries and keys of unit length, in groups of channels",
        active="attention.cosine",
        paper="2010.04245",
        tier=2,
        rows=(
            Row("attn_qk_norm", "attention.cosine", False, {False: None, True: {}}),
            Row("attn_qk_norm_groups", "attention.cosine.groups", 1, needs="attn_qk_norm"),
            Row("attn_qk_norm_scale", "attention.cosine.scale", 10, needs="attn_qk_norm"),
            Row(
                "attn_qk_norm_dim_scale",
                "attention.cosine.learned_scale",
                False,
                needs="attn_qk_norm",
            ),
        ),
        samples=(
            Sample({"attn_qk_norm": True}),
            Sample({"attn_qk_norm": True, "attn_qk_norm_groups": 4, "attn_qk_norm_scale": 3}),
            Sample({"attn_qk_norm": True, "attn_qk_norm_dim_scale": True, "attn_kv_heads": 2}),
        ),
        weights=(
            Rule("attention", "qk_norm_q_scale", "norms.unit_query.scale", (Heads(0),)),
            Rule("attention", "qk_norm_k_scale", "norms.unit_key.scale"),
        ),
    ),
)

LATENT: tuple[Option, ...] = (
    Option(
        name="latent attention",
        about="keys and values (and queries) through a bottleneck (MLA)",
        active="attention.latent",
        paper="2405.04434",
        tier=2,
        rows=(
            Row("attn_use_latent_q", "attention.latent", False, {True: {}}, back=has_latent_q),
            Row("attn_use_latent_kv", "attention.latent", False, {True: {}}, back=has_latent_kv),
            Row(
                "attn_dim_latent_q",
                "attention.latent.q_dim",
                None,
                needs="attn_use_latent_q",
                into=latent_width,
            ),
            Row(
                "attn_dim_latent_kv",
                "attention.latent.kv_dim",
                None,
                needs="attn_use_latent_kv",
                into=latent_width,
            ),
            Row(
                "attn_latent_rope_subheads",
                "attention.latent.rotary_heads",
                None,
                needs="attn_use_latent_kv",
            ),
        ),
        samples=(
            Sample({"attn_use_latent_kv": True, "attn_dim_latent_kv": 24}),
            Sample({"attn_use_latent_q": True, "attn_dim_latent_q": 24}),
            Sample(
                {
                    "attn_use_latent_q": True,
                    "attn_dim_latent_q": 24,
                    "attn_use_latent_kv": True,
                    "attn_dim_latent_kv": 24,
                    "attn_latent_rope_subheads": 1,
                    "rotary_pos_emb": True,
                }
            ),
        ),
        weights=(
            Rule("attention", "to_latent_q.weight", "projection.q_down.weight"),
            Rule("attention", "to_latent_kv.weight", "projection.kv_down.weight"),
            Rule("attention", "to_rotateable_k.weight", "projection.to_rotary_k.weight"),
            Rule("attention", "to_q.weight", "projection.to_q.weight", (Heads(0),)),
            Rule("attention", "to_k.weight", "projection.to_k.weight"),
            Rule("attention", "to_v.weight", "projection.to_v.weight"),
        ),
        differs="cached without rotary heads too (there: generate fails)",
    ),
)

EXTRA: tuple[Option, ...] = (
    Option(
        name="memory keys and values",
        about="learned keys and values that every token may read",
        active="attention.memory_kv",
        paper="1907.01470",
        tier=2,
        rows=(Row("attn_num_mem_kv", "attention.memory_kv", 0),),
        samples=(
            Sample({"attn_num_mem_kv": 3}),
            Sample({"attn_num_mem_kv": 3, "attn_kv_heads": 2, "attn_flash": True}),
        ),
        weights=(
            Rule("attention", "mem_k", "memory.keys"),
            Rule("attention", "mem_v", "memory.values"),
        ),
    ),
    Option(
        name="zero key",
        about="an empty key and value that take up attention",
        active="attention.zero_kv",
        tier=2,
        rows=(Row("attn_add_zero_kv", "attention.zero_kv", False),),
        samples=(Sample({"attn_add_zero_kv": True}),),
    ),
    Option(
        name="sink",
        about="a learned score for each head that reads nothing (gpt-oss)",
        active="attention.sink",
        tier=2,
        rows=(Row("attn_head_learned_sink", "attention.sink", False),),
        samples=(
            Sample({"attn_head_learned_sink": True}),
            Sample({"attn_head_learned_sink": True, "attn_kv_heads": 2}),
        ),
        weights=(Rule("attention", "attend.head_attn_sink", "sink.scores", (Heads(0),)),),
        differs="works with flash (there: refused)",
    ),
)

OPTIONS: tuple[Option, ...] = (*SIZES, *NORMS, *LATENT, *EXTRA)
