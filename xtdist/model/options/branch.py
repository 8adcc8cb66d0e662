"""Options of what a branch reads beside the stream, and of how much of it counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.config import ConfigError
from xtdist.model.options.base import SKIP, Fixed, Option, Row, Sample
from xtdist.model.options.norm import adapted_scale_back, adapted_width
from xtdist.model.options.residual import kwarg
from xtdist.model.options.unconvertible import VALUE_MIX
from xtdist.model.options.weights import Nest, Rule


def by_layer(on: bool | float, given: Mapping[str, Any]) -> Any:
    """``depth_scale_residual=True`` is an init, a number scales branches."""
    return "by_layer" if on is True else SKIP


def is_by_layer(init: str, tree: Mapping[str, Any]) -> Any:
    """The way back."""
    return True if init == "by_layer" else SKIP


def constant_kind(on: bool | float, given: Mapping[str, Any]) -> Any:
    """The number of ``depth_scale_residual``."""
    if isinstance(on, bool):
        return SKIP
    if not isinstance(on, (int, float)):
        raise ConfigError(
            f"depth_scale_residual: got {on!r}; give True (an init by layer), False, or a number"
        )
    return {"kind": "constant", "value": float(on)}


def constant_value(scale: Mapping[str, Any] | None, tree: Mapping[str, Any]) -> Any:
    """The way back."""
    return scale["value"] if scale is not None and scale["kind"] == "constant" else SKIP


def unit_offset(given: Mapping[str, Any]) -> bool:
    """Layerscale takes ``norm_add_unit_offset`` too."""
    return bool(given["norm_add_unit_offset"])


BRANCHES: tuple[Option, ...] = (
    Option(
        name="branch init by layer",
        about="deeper branches start smaller (OLMo)",
        active="branch_init=by_layer",
        paper="2402.00838",
        tier=2,
        rows=(Row("depth_scale_residual", "branch_init", False, into=by_layer, back=is_by_layer),),
        samples=(Sample({"depth_scale_residual": True}),),
    ),
    Option(
        name="zero branch init",
        about="branches start as nothing",
        active="branch_init=zero",
        tier=2,
        rows=(Row("zero_init_branch_output", "branch_init", False, {True: "zero"}),),
        samples=(Sample({"zero_init_branch_output": True}),),
    ),
    Option(
        name="constant branch scale",
        about="branches times a constant",
        active="branch_scale.kind=constant",
        tier=2,
        rows=(
            Row(
                "depth_scale_residual",
                "branch_scale",
                False,
                into=constant_kind,
                back=constant_value,
            ),
        ),
        samples=(Sample({"depth_scale_residual": 0.4}),),
        weights=(Nest("acf", 3),),
    ),
    Option(
        name="layerscale",
        about="a learned gain for each channel of a branch",
        active="branch_scale.kind=layerscale",
        paper="2103.17239",
        tier=3,
        rows=(
            Row(
                "use_layerscale",
                "branch_scale",
                False,
                {True: {"kind": "layerscale"}},
            ),
            Row("layerscale_init_value", "branch_scale.init_value", 0.0, needs="use_layerscale"),
            Fixed("branch_scale.unit_offset", unit_offset, needs="use_layerscale"),
        ),
        samples=(Sample({"use_layerscale": True, "layerscale_init_value": 0.5}),),
        weights=(Nest("acf", 2, scale=True), Rule("scale", "gamma", "gain")),
    ),
    Option(
        name="adaptive layerscale",
        about="a branch gain from a condition (DiT)",
        active="branch_scale.kind=adaptive_layerscale",
        paper="2212.09748",
        tier=3,
        rows=(
            Row(
                "use_adaptive_layerscale",
                "branch_scale",
                False,
                {True: {"kind": "adaptive_layerscale"}},
            ),
            Row(
                "dim_condition",
                "branch_scale.dim_condition",
                None,
                into=adapted_width,
                back=adapted_scale_back,
            ),
        ),
        samples=(
            Sample({"use_adaptive_layerscale": True}, inputs=("condition",)),
            Sample(
                {
                    "use_adaptive_layerscale": True,
                    "use_adaptive_rmsnorm": True,
                    "adaptive_condition_mlp": True,
                    "dim_condition": 32,
                },
                inputs=("condition",),
            ),
        ),
        weights=(
            Nest("acf", 2, scale=True),
            Rule("scale", "to_gamma.weight", "to_gain.weight"),
            Rule("scale", "to_gamma.bias", "to_gain.bias"),
        ),
    ),
)

ONCE = dict.fromkeys(
    ("tied layers", "order of execution"),
    "each sublayer reads those before it by their number, which only holds where every one runs "
    "once and in its order; leave one out",
)

NUMBERED = (
    "integrate_layers and attn_aggregated_residuals read the sublayers in the order in which they "
    "were built"
)

READS: tuple[Option, ...] = (
    Option(
        name="LIMe",
        about="a branch reads a learned mix of all earlier hidden states",
        active="integrator.kind=lime",
        fixed_order=NUMBERED,
        paper="2502.09245",
        tier=3,
        rows=(
            Row("integrate_layers", "integrator", False, {True: {"kind": "lime"}}),
            Row(
                "layer_integrate_use_softmax",
                "integrator.weights",
                True,
                {True: "softmax", False: "relu"},
                needs="integrate_layers",
            ),
            Fixed("integrator.eps", 1e-12, needs="integrate_layers"),
        ),
        samples=(
            Sample({"integrate_layers": True}),
            Sample({"integrate_layers": True, "layer_integrate_use_softmax": False}),
        ),
        weights=(
            Rule("integrator", "to_weights.0.g", "norm.gain"),
            Rule("integrator", "to_weights.1.weight", "to_weights.weight"),
            Rule("integrator", "to_weights.1.bias", "to_weights.bias"),
        ),
        excludes=ONCE,
    ),
    Option(
        name="attention over layers",
        about="a branch reads all earlier hidden states of its token by attention",
        active="integrator.kind=attention",
        fixed_order=NUMBERED,
        paper="2601.21582, 2603.15031",
        tier=3,
        rows=(
            Row("attn_aggregated_residuals", "integrator", False, {True: {"kind": "attention"}}),
            kwarg(
                "attn_aggregated_residual_kwargs",
                "integrator.rank",
                "lora_rank",
                64,
            ),
        ),
        samples=(
            Sample(
                {
                    "attn_aggregated_residuals": True,
                    "attn_aggregated_residual_kwargs": {"lora_rank": 8},
                }
            ),
        ),
        weights=(
            Rule("integrator", "to_keys.weight", "key_norm.gain"),
            Rule("integrator", "to_query.0.weight", "delta_norm.gain"),
            Rule("integrator", "norm.weight", "query_norm.gain"),
            Rule("integrator", "to_query.1.down.weight", "down.weight"),
            Rule("integrator", "to_query.1.up.weight", "up.weight"),
        ),
        excludes=ONCE,
    ),
    Option(
        name="value residual",
        about="the first layer's values in all later ones (ResFormer)",
        active="value_residual",
        acts_in="ac",
        paper="2410.17897",
        tier=3,
        rows=(
            Row("add_value_residual", "value_residual", False, {False: None, True: {}}),
            Row(
                "learned_value_residual_mix",
                "value_residual.learned",
                True,
                needs="add_value_residual",
            ),
        ),
        samples=(
            Sample({"add_value_residual": True}),
            Sample({"add_value_residual": True, "learned_value_residual_mix": False}),
        ),
        weights=(
            Rule("attention", "to_value_residual_mix.0.weight", "mix.proj.weight"),
            Rule("attention", "to_value_residual_mix.0.bias", "mix.proj.bias"),
            VALUE_MIX,
        ),
    ),
    Option(
        name="reinjected input",
        about="every sublayer reads the stack's input too",
        active="reinject",
        paper="1909.01377, 2410.03020",
        tier=3,
        rows=(
            Row("reinject_input", "reinject", False, {False: None, True: {}}),
            Row(
                "learned_reinject_input_gate",
                "reinject.gate",
                False,
                needs="reinject_input",
            ),
        ),
        samples=(
            Sample({"reinject_input": True}),
            Sample({"reinject_input": True, "learned_reinject_input_gate": True}),
        ),
        weights=(
            Rule("layers", "reinject_input_proj.weight", "reinject.proj.weight"),
            Rule("layers", "learned_reinject_input_gate.weight", "reinject.gate.weight"),
        ),
    ),
    Option(
        name="U-Net skips",
        about="late blocks read the outputs of early ones",
        active="unet_skips",
        fixed_order="unet_skips joins each late block with an early one by their numbers",
        paper="2209.12152",
        tier=3,
        rows=(Row("unet_skips", "unet_skips", False),),
        samples=(Sample({"unet_skips": True}),),
        weights=(Rule("skip", "combine.weight", "combine.weight"),),
        excludes=dict.fromkeys(
            ("tied layers", "order of execution"),
            "a late block reads the early one of a number, which only holds where every block runs "
            "once and in its order; leave one out",
        ),
    ),
)

OPTIONS: tuple[Option, ...] = (*BRANCHES, *READS)
