"""Options of positions (``position``, ``position_bias``)."""

from __future__ import annotations

from xtdist.model.options.base import Fixed, Option, Row, Sample, elsewhere
from xtdist.model.options.position_words import (
    absolute,
    absolute_back,
    disabled,
    has_xpos,
    inverse_frequencies,
    is_interpolated,
    is_rescaled,
    is_sinusoidal,
    kept_learned,
    learned_scale,
    polar_frequencies,
    replaced_by_bias,
    rotated,
    rotated_back,
    sinusoidal,
    slopes,
    slopes_back,
    xpos_scale,
)
from xtdist.model.options.unconvertible import POLAR
from xtdist.model.options.weights import Derived, Heads, Rule, Scaled

WIDER = "no position, and polar positions give queries and keys twice the channels"

ABSOLUTE: tuple[Option, ...] = (
    Option(
        name="learned positions",
        about="one learned vector for each position, added to the embedding",
        active="position.kind=learned",
        paper="1706.03762",
        rows=(
            Fixed("position.kind", "learned"),
            Row("disable_abs_pos_emb", "position.kind", None, into=disabled, back=kept_learned),
        ),
        wrapper=(Row("use_abs_pos_emb", "position.kind", True, into=absolute, back=absolute_back),),
        samples=(Sample(),),
        weights=(
            Rule(
                "wrapper",
                "pos_emb.emb.weight",
                "position_embedding.weight",
                (Scaled(learned_scale),),
            ),
        ),
    ),
    Option(
        name="sinusoidal positions",
        about="sines and cosines with a learned scale, added to the embedding",
        active="position.kind=sinusoidal",
        paper="1706.03762",
        tier=2,
        wrapper=(
            Row("scaled_sinu_pos_emb", "position.kind", False, into=sinusoidal, back=is_sinusoidal),
        ),
        samples=(Sample(wrapper={"scaled_sinu_pos_emb": True}),),
        weights=(Rule("wrapper", "pos_emb.scale", "position_embedding.scale"),),
    ),
    Option(
        name="no positions",
        about="order from the causal mask alone (NoPE)",
        active="position.kind=none",
        paper="2305.19466",
        samples=(
            Sample(wrapper={"use_abs_pos_emb": False}),
            Sample({"disable_abs_pos_emb": True}),
        ),
    ),
)

ROTARY: tuple[Option, ...] = (
    Option(
        name="rotary positions",
        about="queries and keys turned by their position (RoPE)",
        active="position.kind=rotary",
        acts_in="ac",
        paper="2104.09864",
        rows=(
            Row("rotary_pos_emb", "position.kind", False, {True: "rotary"}),
            Row(
                "rotary_emb_dim",
                "position.dim",
                None,
                needs="rotary_pos_emb|rotary_xpos",
                into=rotated,
                back=rotated_back,
            ),
        ),
        samples=(
            Sample({"rotary_pos_emb": True}),
            Sample({"rotary_pos_emb": True, "rotary_emb_dim": 16}),
        ),
        weights=(Derived("layers", "rotary_pos_emb.inv_freq", inverse_frequencies),),
        differs="angles are fp32 from integer positions, also in a bf16 model",
    ),
    Option(
        name="rotary interpolation",
        about="positions divided by a factor",
        active=is_interpolated,
        paper="2306.15595",
        rows=(Row("rotary_interpolation_factor", "position.interpolation", 1.0),),
        samples=(Sample({"rotary_pos_emb": True, "rotary_interpolation_factor": 2.0}),),
    ),
    Option(
        name="rotary base rescaling",
        about="longer wavelengths (NTK-aware)",
        active=is_rescaled,
        rows=(Row("rotary_base_rescale_factor", "position.theta_rescale", 1.0),),
        samples=(Sample({"rotary_pos_emb": True, "rotary_base_rescale_factor": 4.0}),),
    ),
    Option(
        name="rotary scaling",
        about="wavelengths stretched unequally (YaRN, Llama 3)",
        active="position.scaling",
        paper="2309.00071",
        samples=(
            Sample(
                {"rotary_pos_emb": True},
                config={"position.scaling": {"kind": "yarn", "factor": 4.0, "original_max_len": 8}},
            ),
            Sample(
                {"rotary_pos_emb": True},
                config={
                    "position.layout": "halves",
                    "position.scaling": {"kind": "llama3", "factor": 4.0, "original_max_len": 64},
                },
            ),
        ),
    ),
    Option(
        name="rotary layout of halves",
        about="channel i is paired with the one half a head away (Llama)",
        active="position.layout=halves",
        samples=(
            Sample({"rotary_pos_emb": True}, config={"position.layout": "halves"}),
            Sample(
                {"rotary_pos_emb": True, "rotary_emb_dim": 16, "attn_kv_heads": 2},
                config={"position.layout": "halves", "position.theta": 500.0},
            ),
        ),
    ),
    Option(
        name="partly rotated heads",
        about="only some heads are rotated",
        active="position.heads",
        tier=2,
        rows=(Row("rotate_num_heads", "position.heads", None),),
        samples=(Sample({"rotary_pos_emb": True, "rotate_num_heads": 2}),),
    ),
    Option(
        name="xPos",
        about="rotary scores that decay with distance",
        active="position.xpos_scale_base",
        paper="2212.10554",
        tier=2,
        rows=(
            Row("rotary_xpos", "position.kind", False, {True: "rotary"}, back=elsewhere),
            Row("rotary_xpos", "position.xpos_scale_base", False, {True: {}}, back=has_xpos),
            Row("rotary_xpos_scale_base", "position.xpos_scale_base", 512, needs="rotary_xpos"),
        ),
        samples=(
            Sample({"rotary_xpos": True}),
            Sample({"rotary_pos_emb": True, "rotary_xpos": True, "rotary_xpos_scale_base": 16}),
        ),
        weights=(Derived("layers", "rotary_pos_emb.scale", xpos_scale),),
        causal="causal only",
        differs="exact wherever a sequence stands: exponents count from the middle of its "
        "positions (with a cache from xpos_centre); a position more than 55 bases away from there, "
        "4 in fp16, is an error (there: wrong numbers, then NaN)",
    ),
    Option(
        name="polar positions",
        about="content is the magnitude, position the angle (PoPE)",
        active="position.kind=polar",
        acts_in="a",
        paper="2509.10534",
        tier=3,
        rows=(
            Row("polar_pos_emb", "position.kind", False, {True: "polar"}),
            Row("polar_bias_uniform_init", "position.uniform_bias", False, needs="polar_pos_emb"),
        ),
        excludes={
            "memory keys and values": f"they have {WIDER}; leave one of the two out",
            "CoPE": f"its vectors have {WIDER}; leave one of the two out",
            "latent attention": f"its unrotated heads have {WIDER}; use rotary positions",
        },
        samples=(
            Sample({"polar_pos_emb": True}),
            Sample(
                {"polar_pos_emb": True, "polar_bias_uniform_init": True},
                broken="writes into a parameter that records gradients",
            ),
        ),
        weights=(
            Derived("layers", "polar_pos_emb.inv_freq", polar_frequencies),
            Rule("layers", "polar_pos_emb.learned_bias", "polar.bias"),
            *POLAR,
        ),
    ),
)

BIASES: tuple[Option, ...] = (
    Option(
        name="ALiBi",
        about="a penalty that grows linearly with distance",
        active="position_bias.kind=alibi",
        acts_in="a",
        paper="2108.12409",
        rows=(
            Row("alibi_pos_bias", "position_bias", False, {True: {"kind": "alibi"}}),
            Row("alibi_num_heads", "position_bias.heads", None, needs="alibi_pos_bias"),
            Row("rel_pos_kwargs", "position_bias.slopes", {}, into=slopes, back=slopes_back),
        ),
        samples=(
            Sample({"alibi_pos_bias": True}),
            Sample({"alibi_pos_bias": True, "attn_kv_heads": 2, "attn_flash": True}),
            Sample({"alibi_pos_bias": True, "alibi_num_heads": 3}),
        ),
    ),
    Option(
        name="T5 bias",
        about="a learned number for each bucket of distances",
        active="position_bias.kind=t5",
        acts_in="a",
        paper="1910.10683",
        tier=2,
        rows=(
            Row("rel_pos_bias", "position_bias", False, {True: {"kind": "t5"}}),
            Row("rel_pos_bias", "position.kind", False, into=replaced_by_bias, back=elsewhere),
            Row("rel_pos_num_buckets", "position_bias.buckets", 32, needs="rel_pos_bias"),
            Row("rel_pos_max_distance", "position_bias.max_distance", 128, needs="rel_pos_bias"),
        ),
        samples=(
            Sample({"rel_pos_bias": True}),
            Sample({"rel_pos_bias": True, "rel_pos_num_buckets": 8, "rel_pos_max_distance": 12}),
            Sample({"rel_pos_bias": True, "attn_kv_heads": 2, "disable_abs_pos_emb": False}),
        ),
        weights=(
            Rule(
                "layers",
                "rel_pos.relative_attention_bias.weight",
                "position_bias.weight",
                (Heads(1),),
            ),
        ),
        differs="works with flash (there: refused)",
    ),
    Option(
        name="dynamic position bias",
        about="a network of the distance",
        active="position_bias.kind=dynamic",
        acts_in="a",
        paper="2111.09883",
        tier=2,
        rows=(
            Row("dynamic_pos_bias", "position_bias", False, {True: {"kind": "dynamic"}}),
            Row(
                "dynamic_pos_bias_log_distance",
                "position_bias.log_distance",
                False,
                needs="dynamic_pos_bias",
            ),
            Row("dynamic_pos_bias_mlp_depth", "position_bias.depth", 2, needs="dynamic_pos_bias"),
            Row("dynamic_pos_bias_norm", "position_bias.norm", False, needs="dynamic_pos_bias"),
        ),
        samples=(
            Sample({"dynamic_pos_bias": True, "dynamic_pos_bias_log_distance": True}),
            Sample(
                {
                    "dynamic_pos_bias": True,
                    "dynamic_pos_bias_mlp_depth": 3,
                    "dynamic_pos_bias_norm": True,
                    "attn_kv_heads": 2,
                }
            ),
        ),
        weights=(
            Rule("layers", "rel_pos.mlp.{j}.0.weight", "position_bias.hidden.{j}.linear.weight"),
            Rule("layers", "rel_pos.mlp.{j}.0.bias", "position_bias.hidden.{j}.linear.bias"),
            Rule("layers", "rel_pos.mlp.0.1.gamma", "position_bias.hidden.0.norm.weight"),
            Rule("layers", "rel_pos.mlp.{j}.1.weight", "position_bias.hidden.{j}.norm.weight"),
            Rule("layers", "rel_pos.mlp.{j}.1.bias", "position_bias.hidden.{j}.norm.bias"),
            Rule(
                "layers",
                "rel_pos.mlp.{position_bias.depth}.weight",
                "position_bias.to_bias.weight",
                (Heads(0),),
            ),
            Rule(
                "layers",
                "rel_pos.mlp.{position_bias.depth}.bias",
                "position_bias.to_bias.bias",
                (Heads(0),),
            ),
        ),
        differs="works with flash (there: refused)",
    ),
)

OPTIONS: tuple[Option, ...] = (*ABSOLUTE, *ROTARY, *BIASES)
