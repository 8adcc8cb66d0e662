"""Options of one attention layer: from scores to weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.model.options.base import EAGER, SCORES, SKIP, Option, Row, Sample, elsewhere
from xtdist.model.options.weights import Heads, Refused, Rule, Shape

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
        rows=(Row("attn_selective", "attention.selective", False, self_only=True),),
        samples=(Sample({"attn_selective": True}),),
        weights=(
            Refused(
                "cross_attention",
                "x-transformers can't build this: it makes cross attention selective too, where it "
                "refuses that; drop cross_attend or attn_selective",
            ),
        ),
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
        excludes={"sink": "its weights don't compete, so a sink takes nothing; leave one out"},
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

OPTIONS: tuple[Option, ...] = (*SCORE_OPTIONS, *WEIGHT_OPTIONS)
