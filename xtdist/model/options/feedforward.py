"""Options of the feed-forward layers (``feedforward``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.model.options.base import Fixed, Option, Row, Sample
from xtdist.model.options.weights import Rule


def bias_in(given: Mapping[str, Any]) -> bool:
    """There, a gated layer's input projection has a bias even without biases."""
    return bool(given["ff_glu"] or not given["ff_no_bias"])


def moe(*, expert: dict[str, Any], **sizes: int) -> dict[str, Any]:
    """A small mixture of experts."""
    shape = {"mult": 2.0, "multiple_of": 1, **expert}
    return {"feedforward": {"kind": "moe", "expert": shape, **sizes}}


KINDS: tuple[Option, ...] = (
    Option(
        name="feed-forward",
        about="two projections with an activation between them",
        active="feedforward",
        paper="1706.03762",
        rows=(
            Fixed("feedforward.multiple_of", 1),
            Row("ff_mult", "feedforward.mult", 4.0),
        ),
        samples=(Sample({"ff_mult": 2.7}),),
        weights=(
            Rule("feedforward", "ff.2.weight", "proj_out.weight"),
            Rule("feedforward", "ff.2.bias", "proj_out.bias"),
        ),
    ),
    Option(
        name="mlp",
        about="plain feed-forward",
        active="feedforward.kind=mlp",
        weights=(
            Rule("feedforward", "ff.0.0.weight", "proj_in.weight"),
            Rule("feedforward", "ff.0.0.bias", "proj_in.bias"),
        ),
    ),
    Option(
        name="glu",
        about="gated feed-forward (GEGLU, SwiGLU)",
        active="feedforward.kind=glu",
        paper="2002.05202",
        rows=(Row("ff_glu", "feedforward.kind", False, {False: "mlp", True: "glu"}),),
        samples=(Sample({"ff_glu": True}), Sample({"ff_glu": True, "ff_swish": True})),
        weights=(
            Rule("feedforward", "ff.0.proj.weight", "proj_in.weight"),
            Rule("feedforward", "ff.0.proj.bias", "proj_in.bias"),
        ),
    ),
    Option(
        name="no feed-forward bias",
        about="feed-forward projections without biases",
        active="feedforward.bias_out=False",
        rows=(
            Fixed("feedforward.bias_in", bias_in),
            Row("ff_no_bias", "feedforward.bias_out", False, {False: True, True: False}),
        ),
        samples=(
            Sample({"ff_no_bias": True}),
            Sample({"ff_no_bias": True, "ff_glu": True, "ff_swish": True}),
        ),
    ),
    Option(
        name="feed-forward dropout",
        about="drop inner channels in training",
        active="feedforward.dropout",
        rows=(Row("ff_dropout", "feedforward.dropout", 0.0),),
        samples=(Sample({"ff_dropout": 0.1}),),
    ),
    Option(
        name="feed-forward output dropout",
        about="drop channels of the output in training",
        active="feedforward.dropout_out",
        tier=3,
        rows=(Row("ff_sublayer_dropout", "feedforward.dropout_out", 0.0),),
        samples=(Sample({"ff_sublayer_dropout": 0.1}),),
    ),
    Option(
        name="zero feed-forward output",
        about="feed-forwards start as nothing",
        active="feedforward.zero_init_output",
        tier=2,
        rows=(Row("ff_zero_init_output", "feedforward.zero_init_output", False),),
        samples=(Sample({"ff_zero_init_output": True}),),
    ),
)

SHAPES: tuple[Option, ...] = (
    Option(
        name="swish",
        about="SiLU instead of GELU",
        active="feedforward.activation=silu",
        paper="1702.03118",
        rows=(
            Fixed("feedforward.activation", "gelu"),
            Row("ff_swish", "feedforward.activation", False, {True: "silu"}),
        ),
        samples=(Sample({"ff_swish": True}),),
    ),
    Option(
        name="squared ReLU",
        about="relu² instead of GELU",
        active="feedforward.activation=relu_squared",
        paper="2109.08668",
        tier=2,
        rows=(Row("ff_relu_squared", "feedforward.activation", False, {True: "relu_squared"}),),
        samples=(
            Sample({"ff_relu_squared": True}),
            Sample({"ff_relu_squared": True, "ff_glu": True}),
        ),
    ),
    Option(
        name="SoLU",
        about="x · softmax(x), normed, instead of GELU",
        active="feedforward.activation=solu",
        tier=3,
        rows=(Row("ff_solu", "feedforward.activation", False, {True: "solu"}),),
        samples=(Sample({"ff_solu": True}), Sample({"ff_solu": True, "ff_glu": True})),
        weights=(
            Rule(
                "feedforward",
                "ff.0.1.norm.gamma",
                "act_norm.gain",
                where="feedforward.kind=mlp",
            ),
            Rule(
                "feedforward",
                "ff.0.act.norm.gamma",
                "act_norm.gain",
                where="feedforward.kind=glu",
            ),
        ),
    ),
    Option(
        name="GLU factor",
        about="a learned factor for each inner channel of a GLU",
        active="feedforward.mult_bias",
        tier=2,
        rows=(Row("ff_glu_mult_bias", "feedforward.mult_bias", False, needs="ff_glu"),),
        samples=(Sample({"ff_glu": True, "ff_glu_mult_bias": True}),),
        weights=(Rule("feedforward", "ff.0.mult_bias", "mult_bias"),),
    ),
    Option(
        name="GLU softclamp",
        about="a GLU whose factors saturate",
        active="feedforward.gate_softclamp",
        paper="2607.24653",
        tier=3,
        rows=(
            Row(
                "ff_glu_softclamp",
                "feedforward.gate_softclamp",
                False,
                {False: None, True: {}},
                needs="ff_glu",
            ),
            Row(
                "ff_glu_gate_softclamp_value",
                "feedforward.gate_softclamp",
                4.0,
                needs="ff_glu_softclamp",
            ),
            Row(
                "ff_glu_up_softclamp_value",
                "feedforward.up_softclamp",
                25.0,
                needs="ff_glu_softclamp",
            ),
        ),
        samples=(
            Sample({"ff_glu": True, "ff_glu_softclamp": True}),
            Sample(
                {
                    "ff_glu": True,
                    "ff_swish": True,
                    "ff_glu_softclamp": True,
                    "ff_glu_gate_softclamp_value": 1.0,
                    "ff_glu_up_softclamp_value": 2.0,
                }
            ),
        ),
    ),
    Option(
        name="activation softclamp",
        about="a smooth cap on the activation's input",
        active="feedforward.softclamp",
        tier=3,
        rows=(Row("ff_softclamp_value", "feedforward.softclamp", None),),
        samples=(Sample({"ff_softclamp_value": 1.5}),),
        weights=(Rule("feedforward", "ff.0.2.norm.gamma", "act_norm.gain"),),
    ),
    Option(
        name="post-activation norm",
        about="LayerNorm behind the activation (NormFormer)",
        active="feedforward.post_act_norm",
        tier=2,
        rows=(Row("ff_post_act_ln", "feedforward.post_act_norm", False),),
        samples=(
            Sample({"ff_post_act_ln": True}),
            Sample({"ff_post_act_ln": True, "ff_glu": True, "ff_no_bias": True}),
        ),
        weights=(
            Rule("feedforward", "ff.1.gamma", "post_act_norm.gain"),
            Rule("feedforward", "ff.3.weight", "proj_out.weight"),
            Rule("feedforward", "ff.3.bias", "proj_out.bias"),
        ),
    ),
    Option(
        name="mixture of experts",
        about="each token uses the best few of many feed-forwards",
        active="feedforward.kind=moe",
        paper="2401.04088, 2101.03961",
        tier=2,
        samples=(
            Sample(config=moe(experts=4, top_k=2, expert={"kind": "glu"})),
            Sample(config=moe(experts=3, top_k=1, expert={"kind": "mlp", "bias_in": True})),
            Sample(config=moe(experts=4, top_k=2, shared_experts=1, expert={"kind": "glu"})),
        ),
    ),
)

OPTIONS: tuple[Option, ...] = (*KINDS, *SHAPES)
