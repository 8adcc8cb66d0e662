"""Small models that together use most options with parameters of their own."""

from __future__ import annotations

from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "experts": {
        "feedforward": {
            "kind": "moe",
            "experts": 4,
            "expert": {"kind": "glu", "mult": 1.0, "multiple_of": 1},
            "shared_experts": 1,
            "balance_loss_weight": 0.1,
            "z_loss_weight": 0.1,
        },
        "residual": {"kind": "hyper", "streams": 2, "qkv_views": True},
        "position": {"kind": "none"},
        "position_bias": {"kind": "t5"},
        "attention": {"dim_head": 16, "kv_heads": 2, "sink": True, "memory_kv": 2},
        "reinject": {"gate": True},
        "embedding": {"dim": 24},
    },
    "latent": {
        "attention": {
            "dim_head": 16,
            "latent": {"kv_dim": 24, "q_dim": 24, "rotary_heads": 2},
            "cosine": {"learned_scale": True, "groups": 2},
            "gate": {},
            "head_scale": True,
            "gate_heads": True,
        },
        "residual": {"kind": "gru", "learned_scale": True},
        "branch_norm": True,
        "norm": {"kind": "scalenorm"},
        "layer_dropout": 0.0,
    },
    "lime": {
        "attention": {
            "dim_head": 16,
            "pre_talking_heads": True,
            "post_talking_heads": True,
            "qk_rmsnorm": True,
            "value_rmsnorm": True,
            "output_gate": {"rank": 4},
        },
        "integrator": {"kind": "lime"},
        "position": {"kind": "none"},
        "position_bias": {"kind": "alibi"},
        "branch_scale": {"kind": "layerscale", "init_value": 0.5},
        "memory_tokens": {"tokens": 3},
        "value_residual": {},
        "unet_skips": True,
    },
    "tied layers": {
        "order": {"tie": True},
        "depth": 3,
        "attention": {
            "dim_head": 16,
            "forgetting": {},
            "relative_projection": {},
            "pre_scale_post_talking_heads": True,
        },
        "feedforward": {"kind": "mlp", "bias_in": True, "bias_out": True, "post_act_norm": True},
        "norm": {"kind": "layernorm"},
        "position": {"kind": "learned"},
        "embedding": {"norm": True, "unit": True},
        "tie_embedding": True,
    },
    "attention over layers": {
        "integrator": {"kind": "attention", "rank": 8},
        "attention": {
            "dim_head": 16,
            "cope": {"talking_heads": True},
            "laser": 15.0,
            "glu_out": True,
        },
        "position": {"kind": "sinusoidal"},
        "norm_position": "pre_and_post",
        "norm": {"kind": "dynamic_tanh"},
        "loop": {"kind": "looped", "max_steps": 2},
        "tie_embedding": True,
    },
    "polar": {
        "position": {"kind": "polar", "uniform_bias": True},
        "position_bias": {"kind": "dynamic", "norm": True},
        "residual": {"kind": "gated_multi", "streams": 2, "read_gate_rank": 8},
        "attention": {"dim_head": 16, "forgetting": {"per_row": True}, "zero_kv": True},
        "feedforward": {"kind": "glu", "mult_bias": True},
        "embedding": {"deep": True},
        "tie_embedding": True,
    },
}
