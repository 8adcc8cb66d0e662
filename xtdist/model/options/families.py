"""What models of Llama's and GPT-2's families have and x-transformers does not."""

from __future__ import annotations

from xtdist.model.options.base import Option, Sample

LAYERNORM = {"norm": {"kind": "layernorm", "bias": True}}

OPTIONS: tuple[Option, ...] = (
    Option(
        name="attention biases",
        about="biases on the projections to queries, keys and values (Qwen2)",
        active="attention.bias",
        paper="2407.10671",
        tier=2,
        samples=(
            Sample(config={"attention": {"bias": True}}),
            Sample(config={"attention": {"bias": True, "kv_heads": 2, "bias_out": True}}),
        ),
        excludes={"latent attention": "a bottleneck's projections have none; leave out one"},
    ),
    Option(
        name="attention output bias",
        about="a bias on the projection of attention's output (GPT-2)",
        active="attention.bias_out",
        tier=2,
        samples=(Sample(config={"attention": {"bias_out": True}}),),
    ),
    Option(
        name="shared norm gain",
        about="one gain of normalized queries, and of keys, for all heads (Qwen3)",
        active="attention.shared_norm_gain",
        paper="2505.09388",
        tier=2,
        samples=(Sample(config={"attention": {"qk_rmsnorm": True, "shared_norm_gain": True}}),),
        needed={"attention.shared_norm_gain": "attention.qk_rmsnorm"},
    ),
    Option(
        name="layernorm bias",
        about="LayerNorm with a bias (GPT-2)",
        active="norm.bias",
        paper="1607.06450",
        tier=2,
        samples=(Sample(config=LAYERNORM),),
    ),
    Option(
        name="tanh GELU",
        about="GPT-2's approximation of GELU",
        active="feedforward.activation=gelu_tanh",
        paper="1606.08415",
        tier=2,
        samples=(Sample(config={"feedforward": {"kind": "mlp", "activation": "gelu_tanh"}}),),
    ),
)
