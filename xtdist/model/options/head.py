"""Options of what is made of hidden states: logits, pooling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.model.options.base import Option, Row, Sample
from xtdist.model.options.places import find
from xtdist.model.options.weights import Rule


def logit_scale(scale: float | None, given: Mapping[str, Any]) -> float:
    """There, tied logits are scaled by dim^-1/2 unless said otherwise."""
    return float(given["dim"]) ** -0.5 if scale is None else scale


def logit_scale_back(scale: float, tree: Mapping[str, Any]) -> float | None:
    """The way back."""
    return None if scale == float(tree["dim"]) ** -0.5 else scale


def has_several_heads(config: Any) -> bool:
    """More heads than one."""
    return int(find(config, "head.heads", 1)) > 1


def is_mixture(count: int | None, tree: Mapping[str, Any]) -> bool:
    """Whether there is a number of softmaxes."""
    return count is not None


TIED_WHY = "the embedding matrix is the head; leave out one"
NO_HEAD = "there is no head to choose with return_only_embed; leave out one"

HEAD: tuple[Option, ...] = (
    Option(
        name="tied embedding",
        about="the embedding matrix is the output head",
        active="tie_embedding",
        paper="1608.05859",
        wrapper=(
            Row("tie_embedding", "tie_embedding", False),
            Row(
                "tie_embedding_scale",
                "logit_scale",
                None,
                needs="tie_embedding",
                into=logit_scale,
                back=logit_scale_back,
            ),
        ),
        samples=(
            Sample(wrapper={"tie_embedding": True}),
            Sample(wrapper={"tie_embedding": True, "tie_embedding_scale": 0.5}),
        ),
    ),
    Option(
        name="number of logits",
        about="another number of logits than of tokens",
        active="head.dim",
        wrapper=(Row("logits_dim", "head.dim", None),),
        samples=(Sample(wrapper={"logits_dim": 24}),),
        excludes={"tied embedding": TIED_WHY},
    ),
    Option(
        name="no head",
        about="hidden states instead of logits",
        active="head.output=hidden",
        wrapper=(Row("return_only_embed", "head.output", False, {True: "hidden"}),),
        samples=(Sample(wrapper={"return_only_embed": True}),),
        excludes={
            "tied embedding": NO_HEAD,
            "number of logits": NO_HEAD,
            "several heads": NO_HEAD,
            "squeezed logits": NO_HEAD,
            "mixture of softmaxes": NO_HEAD,
            "sigsoftmax": NO_HEAD,
            "given head": NO_HEAD,
        },
    ),
    Option(
        name="several heads",
        about="several heads, each with logits of its own",
        active=has_several_heads,
        tier=3,
        wrapper=(Row("num_output_heads", "head.heads", 1),),
        weights=(Rule("wrapper", "to_logits.{j}.weight", "head.{j}.weight"),),
        excludes={
            "tied embedding": TIED_WHY,
            "mixture of softmaxes": "a mixture is one distribution; leave out one",
            "given head": "a head that is given is one; leave out num_output_heads",
        },
    ),
    Option(
        name="squeezed logits",
        about="a last axis of length one is dropped",
        active="head.squeeze",
        tier=3,
        wrapper=(Row("squeeze_out_last_dim", "head.squeeze", False),),
        samples=(Sample(wrapper={"squeeze_out_last_dim": True}),),
    ),
    Option(
        name="mixture of softmaxes",
        about="the output is the log of a mixture of softmaxes",
        active="head.mixture",
        paper="1711.03953",
        tier=3,
        wrapper=(
            Row("mixture_of_softmax", "head.mixture", False, {True: {}}, back=is_mixture),
            Row("mixture_of_softmax_k", "head.mixture", 4, needs="mixture_of_softmax"),
        ),
        samples=(
            Sample(wrapper={"mixture_of_softmax": True}),
            Sample(wrapper={"mixture_of_softmax": True, "mixture_of_softmax_k": 2}),
        ),
        weights=(
            Rule("wrapper", "to_mixture.0.weight", "mixture.to_parts.weight"),
            Rule("wrapper", "combine_mixture.weight", "mixture.to_shares.weight"),
        ),
    ),
    Option(
        name="sigsoftmax",
        about="log-sigmoids are added to the logits",
        active="head.sigsoftmax",
        paper="1805.10829",
        tier=3,
        wrapper=(Row("sigsoftmax_logits", "head.sigsoftmax", False),),
        samples=(Sample(wrapper={"sigsoftmax_logits": True}),),
    ),
    Option(
        name="next embedding head",
        about="a second head that predicts the next token's embedding",
        active="head.next_embedding",
        tier=3,
        wrapper=(Row("add_continuous_pred_head", "head.next_embedding", False),),
        samples=(Sample(wrapper={"add_continuous_pred_head": True}),),
        weights=(
            Rule("wrapper", "to_next_embed_pred.0.weight", "next_embedding.hidden.weight"),
            Rule("wrapper", "to_next_embed_pred.2.weight", "next_embedding.out.weight"),
        ),
        differs="works beside emb_dim and prepended vectors",
    ),
    Option(
        name="given head",
        about="the head is a module of the caller's",
        active="head.given",
        tier=2,
        excludes={"tied embedding": TIED_WHY, "number of logits": TIED_WHY},
    ),
    Option(
        name="class tokens",
        about="the output is that of learned tokens before the sequence",
        active="pool.kind=cls",
        paper="1810.04805",
        tier=2,
        wrapper=(
            Row("use_cls_token", "pool", False, {True: {"kind": "cls"}}),
            Row("num_cls_tokens", "pool.tokens", 1, needs="use_cls_token"),
        ),
        weights=(Rule("wrapper", "cls_token", "cls_tokens.weight"),),
        uncacheable="its output is one for the whole sequence",
    ),
    Option(
        name="mean pooling",
        about="the output is that of the mean over all tokens",
        active="pool.kind=mean",
        tier=2,
        wrapper=(Row("average_pool_embed", "pool", False, {True: {"kind": "mean"}}),),
        uncacheable="its output is one for the whole sequence",
        differs="works with prepended vectors, and left padding is left out of the mean",
    ),
    Option(
        name="attention pooling",
        about="learned queries read the output: an encoder's output, or beside a decoder's logits",
        active="pool.kind=attention",
        paper="1810.00825",
        tier=3,
        wrapper=(
            Row("attn_pool", "pool", False, {True: {"kind": "attention"}}),
            Row("num_pooled_tokens", "pool.tokens", 1, needs="attn_pool"),
            Row("attn_pool_depth", "pool.depth", 1, needs="attn_pool"),
            Row("dim_pooled_tokens", "pool.dim", None, needs="attn_pool"),
        ),
        weights=(Rule("wrapper", "attn_pool.queries", "attention_pool.queries"),),
        unpackable="its queries read the whole sequence",
        differs="works with masks beside memory and prepended tokens; a decoder with a cache has "
        "none, where earlier tokens are missing (there, new tokens are pooled alone)",
    ),
)
