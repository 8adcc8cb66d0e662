"""Options of norms: which one, and where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.config import ConfigError
from xtdist.model.options.base import SKIP, Fixed, Option, Row, Sample
from xtdist.model.options.weights import SCALAR, Rule


def norm_position(pre: bool, given: Mapping[str, Any]) -> str:
    """``pre_norm`` and ``pre_and_post_norm`` together; gated streams are normed afterwards."""
    if given["pre_and_post_norm"] and not pre:
        raise ConfigError("pre_and_post_norm=True with pre_norm=False contradict; leave one out")
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


def adapted_scale_back(width: int | None, tree: Mapping[str, Any]) -> Any:
    """The way back from a layerscale's width, where no norm says the same."""
    return SKIP if "dim_condition" in tree["norm"] else adapted_width_back(width, tree)


CLASHES = "sandwich_norm needs pre-norm; leave one of the two out"

OPTIONS: tuple[Option, ...] = (
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
        needed={
            "condition_mlp": "norm.kind=adaptive_layernorm|norm.kind=adaptive_rmsnorm|"
            "branch_scale.kind=adaptive_layerscale"
        },
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
