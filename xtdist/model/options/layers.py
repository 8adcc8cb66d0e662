"""Options of the stack: its size, the order of its sublayers, their norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.model.options.base import REQUIRED, Fixed, Option, Row, Sample
from xtdist.model.options.weights import Nest


def depth(blocks: int | None, given: Mapping[str, Any]) -> int:
    """Blocks; a custom order needs none there, and counts as that many attentions here."""
    if blocks is not None:
        return blocks
    custom = given["custom_layers"]
    if custom is None:
        raise TypeError("missing keyword 'depth', the number of blocks (or custom_layers)")
    if not isinstance(custom, (list, tuple)):
        raise TypeError(f"custom_layers: got {custom!r}; give a tuple like ('a', 'f')")
    return max(1, len([kind for kind in custom if kind != "f"]))


OPTIONS: tuple[Option, ...] = (
    Option(
        name="layers",
        about="blocks of attention and feed-forward",
        active="dim",
        paper="1706.03762",
        rows=(
            Row("dim", "dim", REQUIRED),
            Row("depth", "depth", None, into=depth),
            Row("heads", "heads", 8),
            Fixed("branch_init", "by_depth"),
        ),
    ),
    Option(
        name="cross attention only",
        about="blocks of cross attention and feed-forward",
        active="order.only_cross",
        tier=2,
        rows=(Row("only_cross", "order.only_cross", False, needs="cross_attend"),),
        samples=(Sample({"cross_attend": True, "only_cross": True}, inputs=("context",)),),
    ),
    Option(
        name="attention only",
        about="no feed-forward layers",
        active="order.only_attention",
        paper="2607.18363",
        tier=3,
        rows=(Row("only_attn", "order.only_attention", False),),
        samples=(Sample({"only_attn": True}),),
    ),
    Option(
        name="macaron",
        about="half a feed-forward before and after attention",
        active="order.macaron",
        paper="1906.02762",
        tier=2,
        rows=(Row("macaron", "order.macaron", False),),
        samples=(Sample({"macaron": True}),),
        weights=(Nest("f", 0),),
    ),
    Option(
        name="sandwich order",
        about="attentions first, feed-forwards last",
        active="order.sandwich",
        paper="1911.03864",
        tier=2,
        rows=(Row("sandwich_coef", "order.sandwich", None),),
        samples=(Sample({"sandwich_coef": 1}),),
    ),
    Option(
        name="PAR order",
        about="attention early and seldom",
        active="order.par_ratio",
        paper="2009.04534",
        tier=2,
        rows=(Row("par_ratio", "order.par_ratio", None),),
        samples=(Sample({"par_ratio": 2}),),
    ),
    Option(
        name="custom order",
        about="sublayers as listed",
        active="order.custom",
        tier=2,
        rows=(Row("custom_layers", "order.custom", None),),
        samples=(Sample({"custom_layers": ("a", "f", "f", "a"), "depth": 2}),),
    ),
    Option(
        name="order of execution",
        about="sublayers run in any order, more than once",
        active="order.execute",
        tier=2,
        rows=(Row("layers_execute_order", "order.execute", None),),
        samples=(Sample({"layers_execute_order": (0, 1, 0, 3, 2)}),),
    ),
    Option(
        name="tied layers",
        about="every block has the same weights (ALBERT)",
        active="order.tie",
        paper="1909.11942",
        tier=2,
        rows=(Row("weight_tie_layers", "order.tie", False),),
        samples=(Sample({"weight_tie_layers": True}),),
    ),
    Option(
        name="layer dropout",
        about="skip sublayers in training (stochastic depth)",
        active="layer_dropout",
        paper="1603.09382",
        rows=(Row("layer_dropout", "layer_dropout", 0.0),),
        samples=(Sample({"layer_dropout": 0.3}),),
        differs="drawn for each sample from torch's generator; every parameter gets a gradient",
    ),
    Option(
        name="context dropout",
        about="drop tokens of the context in training",
        active="context_dropout",
        acts_in="c",
        paper="2202.07765",
        tier=3,
        rows=(Row("cross_attn_tokens_dropout", "context_dropout", 0.0, needs="cross_attend"),),
        samples=(
            Sample({"cross_attend": True, "cross_attn_tokens_dropout": 0.2}, inputs=("context",)),
        ),
    ),
    Option(
        name="token shift",
        about="groups of channels come from neighbouring tokens",
        active="shift_tokens",
        tier=2,
        rows=(Row("shift_tokens", "shift_tokens", 0),),
        differs="skips padding, as if it were not there (there: zeros come from it)",
        samples=(Sample({"shift_tokens": 1}),),
        weights=(Nest("acf", 1),),
        uncacheable="a token reads channels of the token before, which a cache does not keep",
        unpackable="the first token of a document would read channels of the one before",
    ),
    Option(
        name="residual attention",
        about="scores of the layer before are added (Realformer)",
        active="residual_attention",
        acts_in="a",
        paper="2012.11747",
        tier=2,
        rows=(Row("residual_attn", "residual_attention", False),),
        samples=(Sample({"residual_attn": True}),),
        excludes={
            "flash": "it reads a table of scores, which fused kernels don't make; leave out one"
        },
    ),
    Option(
        name="residual cross attention",
        about="the same among cross attentions",
        active="cross_residual_attention",
        acts_in="c",
        paper="2012.11747",
        tier=2,
        rows=(Row("cross_residual_attn", "cross_residual_attention", False, needs="cross_attend"),),
        samples=(Sample({"cross_attend": True, "cross_residual_attn": True}, inputs=("context",)),),
        excludes={
            "flash": "it reads a table of scores, which fused kernels don't make; leave out one"
        },
    ),
    Option(
        name="recomputation",
        about="activations are computed again in the backward pass instead of kept",
        active="recompute",
        paper="1604.06174",
        samples=(
            Sample(config={"recompute": {"blocks": 1, "only": "all"}}),
            Sample(config={"recompute": {"blocks": 2, "only": "all"}}),
            Sample(config={"recompute": {"blocks": 1, "only": "feedforward"}}),
        ),
    ),
    Option(
        name="output softclamp",
        about="a smooth cap before the final norm",
        active="softclamp",
        paper="2408.00118",
        tier=3,
        rows=(
            Row("softclamp_output", "softclamp", False, {False: None, True: {}}),
            Row("softclamp_output_value", "softclamp", 30.0, needs="softclamp_output"),
        ),
        samples=(
            Sample({"softclamp_output": True}),
            Sample({"softclamp_output": True, "softclamp_output_value": 1.5}),
        ),
    ),
)
