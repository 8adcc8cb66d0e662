"""Options of the feed-forward layers (``feedforward``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.model.options.base import Fixed, Option, Row, Sample
from xtdist.model.options.weights import Rule


def bias_in(given: Mapping[str, Any]) -> bool:
    """There, a gated layer's input projection has a bias even without biases."""
    return bool(given["ff_glu"] or not given["ff_no_bias"])


OPTIONS: tuple[Option, ...] = (
    Option(
        name="feed-forward",
        about="two projections with an activation between them",
        active="feedforward",
        paper="1706.03762",
        rows=(
            Fixed("feedforward.multiple_of", 1),
            Row("ff_mult", "feedforward.mult", 4.0),
            Row("ff_dropout", "feedforward.dropout", 0.0),
        ),
        samples=(Sample({"ff_mult": 2.7}), Sample({"ff_dropout": 0.1})),
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
        name="swish",
        about="SiLU instead of GELU",
        active="feedforward.activation=silu",
        paper="1702.03118",
        rows=(Row("ff_swish", "feedforward.activation", False, {False: "gelu", True: "silu"}),),
        samples=(Sample({"ff_swish": True}),),
    ),
    Option(
        name="feed-forward bias",
        about="biases of the feed-forward projections",
        active="feedforward.bias_in|feedforward.bias_out",
        rows=(
            Fixed("feedforward.bias_in", bias_in),
            Row("ff_no_bias", "feedforward.bias_out", False, {False: True, True: False}),
        ),
        samples=(
            Sample({"ff_no_bias": True}),
            Sample({"ff_no_bias": True, "ff_glu": True, "ff_swish": True}),
        ),
    ),
)
