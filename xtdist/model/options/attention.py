"""Options of one attention layer (``attention``, ``cross_attention``)."""

from __future__ import annotations

from xtdist.model.options.base import Option, Row, Sample
from xtdist.model.options.weights import Context, Heads, Part, Rule


def query_rows(context: Context) -> int | None:
    """Rows of the query projection in ``to_qkv``."""
    return None


def key_rows(context: Context) -> int:
    """Rows of the key projection in ``to_qkv``."""
    return context.kv_heads * context.attention.dim_head


OPTIONS: tuple[Option, ...] = (
    Option(
        name="attention",
        about="softmax attention over heads",
        active="attention",
        paper="1706.03762",
        rows=(
            Row("attn_dim_head", "attention.dim_head", 64),
            Row("attn_dropout", "attention.dropout", 0.0),
        ),
        samples=(Sample({"attn_dropout": 0.1}),),
        weights=(
            Rule(
                "attention",
                (
                    Part("to_q.weight", (Heads(0),)),
                    Part("to_k.weight", (), key_rows),
                    Part("to_v.weight", (), key_rows),
                ),
                "to_qkv.weight",
            ),
            Rule("attention", "to_out.weight", "to_out.weight", (Heads(1),)),
        ),
    ),
    Option(
        name="flash",
        about="fused kernels, no score matrix in memory",
        active="attention.backend=sdpa",
        paper="2205.14135",
        rows=(Row("attn_flash", "attention.backend", False, {False: "auto", True: "sdpa"}),),
        samples=(Sample({"attn_flash": True}),),
    ),
    Option(
        name="grouped queries",
        about="query heads share keys and values (GQA, MQA)",
        active="attention.kv_heads",
        paper="2305.13245",
        rows=(Row("attn_kv_heads", "attention.kv_heads", None),),
        samples=(Sample({"attn_kv_heads": 2}), Sample({"attn_kv_heads": 1, "attn_flash": True})),
    ),
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
            Rule("attention", "q_rmsnorm.gamma", "query_norm.gain", (Heads(0),)),
            Rule("attention", "k_rmsnorm.gamma", "key_norm.gain"),
        ),
    ),
)
