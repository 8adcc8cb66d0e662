"""Options of one attention layer: what happens to what was read."""

from __future__ import annotations

from xtdist.model.options.base import Option, Row, Sample
from xtdist.model.options.weights import Heads, Rule, Shape

OPTIONS: tuple[Option, ...] = (
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
        needed={"attention.gate_activation": "attention.gate|attention.output_gate"},
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
