"""Options of one attention layer: from scores to weights, and what happens to what was read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.model.options.base import EAGER, SCORES, SKIP, Option, Row, Sample, elsewhere
from xtdist.model.options.weights import Heads, Rule, Shape

HEADS = (Shape("a b 1 1", "a b"), Heads(0), Heads(1))
"""A 1 × 1 convolution over heads ↦ a matrix of our heads."""


def top_k(k: int | None, given: Mapping[str, Any]) -> Any:
    """``attn_sparse_topk`` chooses the kind as well."""
    return SKIP if k is None else "topk"


SCORE_OPTIONS: tuple[Option, ...] = (
    Option(
        name="logit softclamp",
        about="a smooth cap on scores",
        active="attention.softclamp",
        paper="2408.00118",
        tier=2,
        rows=(
            Row("attn_softclamp_logits", "attention.softclamp", False, {False: None, True: {}}),
            Row(
                "attn_logit_softclamp_value",
                "attention.softclamp",
                50.0,
                needs="attn_softclamp_logits",
            ),
        ),
        samples=(
            Sample({"attn_softclamp_logits": True, "attn_logit_softclamp_value": 2.0}),
            Sample({"attn_softclamp_logits": True}),
        ),
        backends=SCORES,
    ),
    Option(
        name="talking heads before softmax",
        about="heads mix their scores",
        active="attention.pre_talking_heads",
        paper="2003.02436",
        tier=2,
        rows=(Row("attn_pre_talking_heads", "attention.pre_talking_heads", False),),
        samples=(
            Sample({"attn_pre_talking_heads": True}),
            Sample({"attn_pre_talking_heads": True, "attn_kv_heads": 2}),
        ),
        weights=(
            Rule(
                "attention",
                "attend.pre_softmax_talking_heads.weight",
                "score_mods.pre.weight",
                HEADS,
            ),
        ),
        backends=EAGER,
    ),
    Option(
        name="talking heads after softmax",
        about="heads mix their weights",
        active="attention.post_talking_heads",
        paper="2003.02436",
        tier=2,
        rows=(Row("attn_post_talking_heads", "attention.post_talking_heads", False),),
        samples=(Sample({"attn_post_talking_heads": True, "attn_kv_heads": 2}),),
        weights=(
            Rule(
                "attention",
                "attend.post_softmax_talking_heads.weight",
                "score_mods.post.weight",
                HEADS,
            ),
        ),
        backends=EAGER,
    ),
    Option(
        name="talking heads that scale",
        about="heads mix their scores to scale the weights",
        active="attention.pre_scale_post_talking_heads",
        paper="2003.02436",
        tier=3,
        rows=(
            Row(
                "attn_pre_scale_post_talking_heads",
                "attention.pre_scale_post_talking_heads",
                False,
            ),
        ),
        samples=(Sample({"attn_pre_scale_post_talking_heads": True}),),
        weights=(
            Rule(
                "attention",
                "attend.pre_scale_post_talking_heads.weight",
                "score_mods.pre_to_post.weight",
                HEADS,
            ),
        ),
        backends=EAGER,
    ),
    Option(
        name="squared distance",
        about="scores fall with the distance of query and key",
        active="attention.similarity=l2",
        tier=3,
        rows=(Row("attn_l2_distance", "attention.similarity", False, {False: "dot", True: "l2"}),),
        samples=(Sample({"attn_l2_distance": True}),),
        backends=EAGER,
    ),
    Option(
        name="selective attention",
        about="tokens hide others from later ones",
        active="attention.selective",
        paper="2410.02703",
        tier=3,
        rows=(Row("attn_selective", "attention.selective", False),),
        samples=(Sample({"attn_selective": True}),),
        backends=EAGER,
        causal="causal only",
        uncacheable="what is hidden depends on all earlier queries, which a cache does not keep",
        unpackable="the first key of a sequence is never hidden, that of a later document would be",
    ),
)

WEIGHT_OPTIONS: tuple[Option, ...] = (
    Option(
        name="top-k attention",
        about="softmax of the largest scores alone",
        active="attention.weights.kind=topk",
        paper="1912.11637, 2505.22074",
        tier=2,
        rows=(
            Row("attn_sparse_topk", "attention.weights.kind", None, into=top_k, back=elsewhere),
            Row("attn_sparse_topk", "attention.weights.k", None),
            Row(
                "attn_sparse_topk_straight_through",
                "attention.weights.straight_through",
                False,
                needs="attn_sparse_topk",
            ),
        ),
        samples=(
            Sample({"attn_sparse_topk": 3}),
            Sample({"attn_sparse_topk": 3, "attn_sparse_topk_straight_through": True}),
        ),
        backends=EAGER,
        differs="sequences shorter than k are read whole (there: an error)",
    ),
    Option(
        name="hard attention",
        about="the best key alone",
        active="attention.weights.kind=hard",
        paper="2410.01104",
        tier=2,
        rows=(Row("attn_hard", "attention.weights.kind", False, {True: "hard"}),),
        samples=(Sample({"attn_hard": True}),),
        backends=EAGER,
    ),
    Option(
        name="sigmoid attention",
        about="each weight on its own",
        active="attention.weights.kind=sigmoid",
        paper="2409.04431",
        tier=3,
        rows=(Row("attn_sigmoid", "attention.weights.kind", False, {True: "sigmoid"}),),
        samples=(Sample({"attn_sigmoid": True}),),
        backends=EAGER,
    ),
    Option(
        name="gumbel attention",
        about="softmax of noisy scores",
        active="attention.weights.kind=gumbel",
        paper="1611.01144",
        tier=3,
        rows=(
            Row("attn_gumbel_softmax", "attention.weights.kind", False, {True: "gumbel"}),
            Row(
                "attn_gumbel_softmax_temp",
                "attention.weights.temperature",
                1.0,
                needs="attn_gumbel_softmax",
            ),
            Row(
                "attn_gumbel_softmax_hard",
                "attention.weights.hard",
                True,
                needs="attn_gumbel_softmax",
            ),
        ),
        samples=(
            Sample({"attn_gumbel_softmax": True}),
            Sample(
                {
                    "attn_gumbel_softmax": True,
                    "attn_gumbel_softmax_hard": False,
                    "attn_gumbel_softmax_temp": 2.0,
                }
            ),
        ),
        backends=EAGER,
        uncacheable="its noise is drawn anew at each step",
    ),
    Option(
        name="signed attention",
        about="weights take the sign of their score (Cog attention)",
        active="attention.weights.kind=signed",
        tier=3,
        rows=(Row("attn_cog_signed", "attention.weights.kind", False, {True: "signed"}),),
        samples=(Sample({"attn_cog_signed": True}),),
        backends=EAGER,
    ),
)

VALUE_OPTIONS: tuple[Option, ...] = (
    Option(
        name="value gate",
        about="a gate on what the heads read, from the token",
        active="attention.gate",
        paper="2505.06708",
        tier=2,
        rows=(
            Row("attn_gate_values", "attention.gate", False, {False: None, True: {}}),
            Row(
                "attn_gate_values_headwise",
                "attention.gate.headwise",
                False,
                needs="attn_gate_values",
            ),
            Row(
                "attn_swiglu_values",
                "attention.gate_activation",
                False,
                {False: "sigmoid", True: "silu"},
                needs="attn_gate_values|attn_output_gate",
            ),
            Row("attn_low_rank_silu_gates", "attention.gate.silu_between", True),
        ),
        samples=(
            Sample({"attn_gate_values": True, "attn_kv_heads": 2}),
            Sample({"attn_gate_values": True, "attn_swiglu_values": True}),
            Sample(
                {
                    "attn_gate_values": True,
                    "attn_gate_values_headwise": True,
                    "attn_kv_heads": 2,
                }
            ),
        ),
        weights=(Rule("attention", "to_v_gate.weight", "value_mods.gate.up.weight", (Heads(0),)),),
    ),
    Option(
        name="low-rank value gate",
        about="that gate through few channels",
        active="attention.gate.rank",
        paper="2608.11805",
        tier=3,
        rows=(Row("attn_gate_values_rank", "attention.gate.rank", None, needs="attn_gate_values"),),
        samples=(
            Sample({"attn_gate_values": True, "attn_gate_values_rank": 4, "attn_kv_heads": 2}),
            Sample(
                {
                    "attn_gate_values": True,
                    "attn_gate_values_rank": 4,
                    "attn_low_rank_silu_gates": False,
                }
            ),
        ),
        weights=(
            Rule("attention", "to_v_gate.down.weight", "value_mods.gate.down.weight"),
            Rule("attention", "to_v_gate.up.weight", "value_mods.gate.up.weight", (Heads(0),)),
        ),
    ),
    Option(
        name="output gate",
        about="a gate on what the heads read, from what they read",
        active="attention.output_gate",
        paper="2608.11805",
        tier=3,
        rows=(
            Row("attn_output_gate", "attention.output_gate", False, {False: None, True: {}}),
            Row(
                "attn_output_gate_headwise",
                "attention.output_gate.headwise",
                False,
                needs="attn_output_gate",
            ),
            Row("attn_low_rank_silu_gates", "attention.output_gate.silu_between", True),
        ),
        samples=(
            Sample({"attn_output_gate": True, "attn_kv_heads": 2}),
            Sample({"attn_output_gate": True, "attn_output_gate_headwise": True}),
        ),
        weights=(
            Rule(
                "attention",
                "to_output_gate.weight",
                "value_mods.output_gate.up.weight",
                (Heads(0), Heads(1)),
            ),
        ),
    ),
    Option(
        name="low-rank output gate",
        about="that gate through few channels",
        active="attention.output_gate.rank",
        paper="2608.11805",
        tier=3,
        rows=(
            Row(
                "attn_output_gate_rank",
                "attention.output_gate.rank",
                None,
                needs="attn_output_gate",
            ),
        ),
        samples=(
            Sample({"attn_output_gate": True, "attn_output_gate_rank": 4, "attn_kv_heads": 2}),
        ),
        weights=(
            Rule(
                "attention",
                "to_output_gate.down.weight",
                "value_mods.output_gate.down.weight",
                (Heads(1),),
            ),
            Rule(
                "attention",
                "to_output_gate.up.weight",
                "value_mods.output_gate.up.weight",
                (Heads(0),),
            ),
        ),
    ),
    Option(
        name="head gate",
        about="one gate for each head, open at first",
        active="attention.gate_heads",
        paper="2306.12929",
        tier=2,
        rows=(Row("attn_gate_value_heads", "attention.gate_heads", False),),
        samples=(Sample({"attn_gate_value_heads": True, "attn_kv_heads": 2}),),
        weights=(
            Rule(
                "attention",
                "to_v_head_gate.weight",
                "value_mods.head_gate.weight",
                (Heads(0),),
            ),
            Rule("attention", "to_v_head_gate.bias", "value_mods.head_gate.bias", (Heads(0),)),
        ),
    ),
    Option(
        name="head scale",
        about="a learned gain for each head (NormFormer)",
        active="attention.head_scale",
        tier=2,
        rows=(Row("attn_head_scale", "attention.head_scale", False),),
        samples=(Sample({"attn_head_scale": True, "attn_kv_heads": 2}),),
        weights=(
            Rule(
                "attention",
                "head_scale_params",
                "value_mods.head_scale.gain",
                (Shape("1 h 1 1", "h"), Heads(0)),
            ),
        ),
    ),
    Option(
        name="laser",
        about="attention over exponentials of values",
        active="attention.laser",
        paper="2411.03493",
        tier=3,
        rows=(
            Row("attn_laser", "attention.laser", False, {False: None, True: {}}),
            Row("attn_laser_softclamp_value", "attention.laser", 15.0, needs="attn_laser"),
        ),
        samples=(
            Sample({"attn_laser": True}),
            Sample({"attn_laser": True, "attn_laser_softclamp_value": 2.0}),
        ),
    ),
    Option(
        name="attention on attention",
        about="the output gates itself",
        active="attention.glu_out",
        paper="1908.06954",
        tier=2,
        rows=(Row("attn_on_attn", "attention.glu_out", False),),
        samples=(Sample({"attn_on_attn": True, "attn_kv_heads": 2}),),
        weights=(Rule("attention", "to_out.0.weight", "to_out.weight", (Heads(1),)),),
    ),
)

OPTIONS: tuple[Option, ...] = (*SCORE_OPTIONS, *WEIGHT_OPTIONS, *VALUE_OPTIONS)
