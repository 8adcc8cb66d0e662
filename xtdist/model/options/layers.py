"""Options of the stack: its size, the order of its sublayers, their norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.model.options.base import REQUIRED, Fixed, Option, Row, Sample
from xtdist.model.options.weights import SCALAR, Nest, Rule


def depth(blocks: int | None, given: Mapping[str, Any]) -> int:
    """Blocks; a custom order needs none there, and counts as that many attentions here."""
    if blocks is not None:
        return blocks
    custom = given["custom_layers"]
    if custom is None:
        raise TypeError("missing keyword 'depth', the number of blocks (or custom_layers)")
    return max(1, len([kind for kind in custom if kind != "f"]))


def norm_position(pre: bool, given: Mapping[str, Any]) -> str:
    """``pre_norm`` and ``pre_and_post_norm`` together; gated streams are normed afterwards."""
    if given["gated_multi_residual"]:
        return "post"
    return "pre_and_post" if given["pre_and_post_norm"] else "pre" if pre else "post"


def is_pre(position: str, tree: Mapping[str, Any]) -> bool:
    """The way back of ``pre_norm``."""
    return position != "post" or tree["residual"]["kind"] == "gated_multi"


def adapted_width(width: int | None, given: Mapping[str, Any]) -> Any:
    """What an adaptive norm gets: the condition, widened by ``adaptive_condition_mlp``."""
    mlp = given["adaptive_condition_mlp_expansion"] if given["adaptive_condition_mlp"] else 1
    return None if width is None and mlp == 1 else (width or given["dim"]) * mlp


def adapted_width_back(width: int | None, tree: Mapping[str, Any]) -> Any:
    """The way back."""
    return None if width is None else width // (tree["condition_mlp"] or 1)


CLASHES = "sandwich_norm needs pre-norm; leave one of the two out"

STACK: tuple[Option, ...] = (
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
        samples=(Sample({"shift_tokens": 1}),),
        weights=(Nest("acf", 1),),
        uncacheable="a token reads channels of the token before, which a cache does not keep",
        unpackable="the first token of a document would read channels of the one before",
    ),
    Option(
        name="residual attention",
        about="scores of the layer before are added (Realformer)",
        active="residual_attention",
        paper="2012.11747",
        tier=2,
        rows=(Row("residual_attn", "residual_attention", False),),
        samples=(Sample({"residual_attn": True}),),
        uncacheable="scores of the layer before are not handed on between cached reads",
        excludes={
            "flash": "it reads a table of scores, which fused kernels don't make; leave out one"
        },
    ),
    Option(
        name="residual cross attention",
        about="the same among cross attentions",
        active="cross_residual_attention",
        paper="2012.11747",
        tier=2,
        rows=(Row("cross_residual_attn", "cross_residual_attention", False, needs="cross_attend"),),
        samples=(Sample({"cross_attend": True, "cross_residual_attn": True}, inputs=("context",)),),
        uncacheable="scores of the layer before are not handed on between cached reads",
        excludes={
            "flash": "it reads a table of scores, which fused kernels don't make; leave out one"
        },
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

NORMS: tuple[Option, ...] = (
    Option(
        name="pre-norm",
        about="normalize what a branch reads, and the stack's output",
        active="norm_position=pre",
        paper="2002.04745",
        rows=(
            Row("pre_norm", "norm_position", True, into=norm_position, back=is_pre),
            Row("pre_norm_has_final_norm", "final_norm", True),
        ),
        samples=(Sample({"pre_norm_has_final_norm": False}),),
    ),
    Option(
        name="post-norm",
        about="normalize after each residual",
        active="norm_position=post",
        paper="1706.03762",
        samples=(Sample({"pre_norm": False}),),
    ),
    Option(
        name="pre- and post-norm",
        about="both, without a final norm",
        active="norm_position=pre_and_post",
        paper="2510.25741",
        tier=3,
        rows=(
            Row(
                "pre_and_post_norm",
                "norm_position",
                False,
                {True: "pre_and_post"},
            ),
        ),
        samples=(Sample({"pre_and_post_norm": True}),),
    ),
    Option(
        name="sandwich norm",
        about="a norm on each branch's output",
        active="branch_norm",
        paper="2105.13290",
        tier=2,
        rows=(Row("sandwich_norm", "branch_norm", False),),
        samples=(Sample({"sandwich_norm": True}),),
        excludes={"post-norm": CLASHES},
    ),
    Option(
        name="layernorm",
        about="LayerNorm without bias",
        active="norm.kind=layernorm",
        paper="1607.06450",
        rows=(
            Fixed("norm.kind", "layernorm"),
            Row("norm_add_unit_offset", "norm.unit_offset", True),
        ),
        samples=(Sample(), Sample({"norm_add_unit_offset": False})),
        weights=(Rule("norm", "gamma", "gain"),),
    ),
    Option(
        name="rmsnorm",
        about="RMSNorm",
        active="norm.kind=rmsnorm",
        paper="1910.07467",
        rows=(
            Row("use_rmsnorm", "norm.kind", False, {True: "rmsnorm"}),
            Fixed("norm.eps", 1e-12, needs="use_rmsnorm"),
        ),
        samples=(
            Sample({"use_rmsnorm": True}),
            Sample({"use_rmsnorm": True, "norm_add_unit_offset": False}),
        ),
        weights=(Rule("norm", "g", "gain"),),
    ),
    Option(
        name="simple rmsnorm",
        about="RMSNorm without a gain",
        active="norm.kind=simple_rmsnorm",
        paper="2307.14995",
        tier=2,
        rows=(
            Row("use_simple_rmsnorm", "norm.kind", False, {True: "simple_rmsnorm"}),
            Fixed("norm.eps", 1e-12, needs="use_simple_rmsnorm"),
        ),
        samples=(Sample({"use_simple_rmsnorm": True}),),
    ),
    Option(
        name="scalenorm",
        about="RMSNorm with one gain for all channels",
        active="norm.kind=scalenorm",
        paper="1910.05895",
        tier=2,
        rows=(
            Row("use_scalenorm", "norm.kind", False, {True: "scalenorm"}),
            Fixed("norm.eps", 1e-12, needs="use_scalenorm"),
        ),
        samples=(Sample({"use_scalenorm": True}),),
        weights=(Rule("norm", "g", "gain"),),
    ),
    Option(
        name="dynamic tanh",
        about="a tanh instead of a norm",
        active="norm.kind=dynamic_tanh",
        paper="2503.10622",
        tier=3,
        rows=(
            Row("use_dynamic_tanh", "norm.kind", False, {True: "dynamic_tanh"}),
            Row("dynamic_tanh_init_alpha", "norm.init_alpha", 1.0, needs="use_dynamic_tanh"),
        ),
        samples=(
            Sample({"use_dynamic_tanh": True, "dynamic_tanh_init_alpha": 0.7}),
            Sample({"use_dynamic_tanh": True, "norm_add_unit_offset": False}),
        ),
        weights=(
            Rule("norm", "pre_tanh_scale", "alpha", (SCALAR,)),
            Rule("norm", "gamma", "gain"),
            Rule("norm", "beta", "bias"),
        ),
    ),
    Option(
        name="derf",
        about="an error function instead of a norm",
        active="norm.kind=derf",
        paper="2512.10938",
        tier=3,
        rows=(Row("use_derf", "norm.kind", False, {True: "derf"}),),
        samples=(Sample({"use_derf": True}),),
        weights=(
            Rule("norm", "alpha", "alpha", (SCALAR,)),
            Rule("norm", "s", "shift", (SCALAR,)),
            Rule("norm", "gamma", "gain"),
            Rule("norm", "beta", "bias"),
        ),
    ),
    Option(
        name="adaptive layernorm",
        about="LayerNorm whose gain comes from a condition (DiT)",
        active="norm.kind=adaptive_layernorm",
        paper="2212.09748",
        tier=3,
        rows=(
            Row("use_adaptive_layernorm", "norm.kind", False, {True: "adaptive_layernorm"}),
            Row(
                "dim_condition",
                "norm.dim_condition",
                None,
                into=adapted_width,
                back=adapted_width_back,
            ),
            Row("adaptive_condition_mlp", "condition_mlp", False, {False: None, True: {}}),
            Row(
                "adaptive_condition_mlp_expansion",
                "condition_mlp",
                4,
                needs="adaptive_condition_mlp",
            ),
        ),
        samples=(
            Sample({"use_adaptive_layernorm": True}, inputs=("condition",)),
            Sample(
                {
                    "use_adaptive_layernorm": True,
                    "adaptive_condition_mlp": True,
                    "adaptive_condition_mlp_expansion": 2,
                    "dim_condition": 32,
                },
                inputs=("condition",),
            ),
        ),
        weights=(
            Rule("norm", "to_gamma.weight", "to_gain.weight"),
            Rule("layers", "adaptive_mlp.0.weight", "condition_mlp.proj.weight"),
        ),
    ),
    Option(
        name="adaptive rmsnorm",
        about="RMSNorm whose gain comes from a condition",
        active="norm.kind=adaptive_rmsnorm",
        paper="2212.09748",
        tier=3,
        rows=(
            Row("use_adaptive_rmsnorm", "norm.kind", False, {True: "adaptive_rmsnorm"}),
            Fixed("norm.eps", 1e-12, needs="use_adaptive_rmsnorm"),
        ),
        samples=(Sample({"use_adaptive_rmsnorm": True}, inputs=("condition",)),),
        weights=(
            Rule("norm", "to_gamma.weight", "to_gain.weight"),
            Rule("layers", "adaptive_mlp.0.weight", "condition_mlp.proj.weight"),
        ),
    ),
)

OPTIONS: tuple[Option, ...] = (*STACK, *NORMS)
