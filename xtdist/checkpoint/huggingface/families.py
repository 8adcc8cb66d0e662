"""The architectures of transformers that a model of ours can be, and what their configs say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from xtdist.config import CheckpointError

Name = Literal["llama", "mistral", "qwen2", "qwen3", "mixtral", "gpt2"]


@dataclass(frozen=True)
class Family:
    """``biases``: which biases its attention has, always, never, or as ``attention_bias`` says.
    ``window``: where it says how far a token reaches back: nowhere, or always in the key
    ``sliding_window``, or there if ``use_sliding_window``."""

    name: Name
    architecture: str
    biases: Literal["never", "key", "qkv", "always"] = "never"
    window: Literal["never", "key", "switch"] = "never"
    mlp_bias: bool = False
    rope_theta: float | None = None
    kv_heads: int | None = None
    sliding_window: int | None = None


FAMILIES: Mapping[str, Family] = {
    f.name: f
    for f in (
        Family("llama", "LlamaForCausalLM", biases="key", mlp_bias=True, rope_theta=10_000.0),
        Family("mistral", "MistralForCausalLM", window="key", kv_heads=8, sliding_window=4096),
        Family("qwen2", "Qwen2ForCausalLM", biases="qkv", window="switch", kv_heads=32),
        Family("qwen3", "Qwen3ForCausalLM", biases="key", window="switch", kv_heads=32),
        Family("mixtral", "MixtralForCausalLM", window="key", kv_heads=8),
        Family("gpt2", "GPT2LMHeadModel", biases="always"),
    )
}

ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu_squared": "relu2",
}
"""Ours → theirs."""
ACTIVATIONS_BACK = {
    **{theirs: ours for ours, theirs in ACTIVATIONS.items()},
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}

NO_EFFECT = frozenset(
    (
        *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "xtdist"),
        *("use_cache", "initializer_range", "pretraining_tp", "_name_or_path", "n_ctx", "prefix"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id"),
        *("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "max_window_layers"),
        *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict"),
        *("chunk_size_feed_forward", "id2label", "label2id", "problem_type", "num_labels"),
        *("task_specific_params", "finetuning_task", "gradient_checkpointing", "tokenizer_class"),
        *("router_aux_loss_coef", "output_router_logits", "router_jitter_noise"),
        *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
        *("summary_first_dropout", "reorder_and_upcast_attn", "_attn_implementation"),
        *("attn_implementation", "unsloth_version", "unsloth_fixed", "decoder_start_token_id"),
    )
)
"""Keys of a config.json that change no logits of a model in evaluation."""
FIXED: Mapping[str, Any] = {
    "is_encoder_decoder": False,
    "is_decoder": (False, True),
    "tie_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "rope_interleaved": False,
    "pruned_heads": ({}, None),
    "partial_rotary_factor": (1, 1.0, None),
}
"""Keys that would, unless they have this value (one of these)."""


def family(name: Any, *, where: str) -> Family:
    """The family of a ``model_type``.

    Raises:
        CheckpointError: none of those that are known.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise CheckpointError(
            f"{where}: model_type is {name!r:.80}; models of {known} can be taken over"
        )
    return FAMILIES[name]
