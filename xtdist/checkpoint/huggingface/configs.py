"""A config.json of transformers from a config of ours, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.checkpoint.huggingface.families import (
    ACTIVATIONS,
    ACTIVATIONS_BACK,
    FIXED,
    NO_EFFECT,
    Family,
    family,
)
from xtdist.checkpoint.huggingface.rope import from_rope, to_rope
from xtdist.config import CheckpointError
from xtdist.model.config import ModelConfig
from xtdist.nn.feedforward import GLUConfig, MLPConfig, MoEConfig
from xtdist.nn.feedforward.config import inner_dim

Tree = dict[str, Any]


def to_tree(config: ModelConfig, kind: Family) -> Tree:
    """What a ``config.json`` of ``kind`` can say of ``config``; what it can't say is left out (see
    ``check``)."""
    ff = config.feedforward
    expert = ff.expert if isinstance(ff, MoEConfig) else ff
    shared = {
        "architectures": [kind.architecture],
        "model_type": kind.name,
        "vocab_size": config.num_tokens,
        "tie_word_embeddings": config.tie_embedding,
    }
    if kind.name == "gpt2":
        return shared | _gpt2_tree(config, expert)
    attention = config.attention
    tree = shared | {
        "hidden_size": config.dim,
        "intermediate_size": inner_dim(expert, config.dim),
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": attention.kv_heads or config.heads,
        "head_dim": attention.dim_head,
        "hidden_act": ACTIVATIONS.get(expert.activation, "silu"),
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": getattr(config.norm, "eps", 1e-6),
        **to_rope(config.position, attention.dim_head),
    }
    if kind.biases == "key":
        tree["attention_bias"] = attention.bias or attention.bias_out
    if kind.mlp_bias:
        tree["mlp_bias"] = expert.bias_in or expert.bias_out
    if isinstance(ff, MoEConfig):
        tree |= {"num_local_experts": ff.experts, "num_experts_per_tok": ff.top_k}
    return tree | _window_tree(config, kind)


def _window_tree(config: ModelConfig, kind: Family) -> Tree:
    """Their window counts the token itself."""
    window = config.attention.window
    size = None if window is None else window + 1
    if kind.window == "never":
        return {}
    if kind.window == "key":
        return {"sliding_window": size}
    layer = "full_attention" if size is None else "sliding_attention"
    return {
        "use_sliding_window": size is not None,
        "sliding_window": size,
        "max_window_layers": 0 if size is not None else config.depth,
        "layer_types": [layer] * config.depth,
    }


def _gpt2_tree(config: ModelConfig, ff: MLPConfig | GLUConfig) -> Tree:
    return {
        "n_embd": config.dim,
        "n_layer": config.depth,
        "n_head": config.heads,
        "n_positions": config.max_seq_len,
        "n_inner": inner_dim(ff, config.dim),
        "activation_function": ACTIVATIONS.get(ff.activation, "gelu"),
        "layer_norm_epsilon": getattr(config.norm, "eps", 1e-5),
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def from_tree(tree: Mapping[str, Any], *, where: str) -> Tree:
    """The model config, as a plain mapping, that a ``config.json`` describes.

    Raises:
        CheckpointError: a key is missing, unknown, or has a value that is another model; it is
            named.
    """
    kind = family(tree.get("model_type"), where=where)
    keys = _Keys(tree, where)
    keys.check_fixed()
    model = _from_gpt2(keys) if kind.name == "gpt2" else _from_llama(keys, kind)
    model |= {
        "num_tokens": keys.number("vocab_size"),
        "tie_embedding": keys.flag("tie_word_embeddings", kind.name == "gpt2"),
    }
    keys.check_used()
    return model


def _from_llama(keys: _Keys, kind: Family) -> Tree:
    dim, heads = keys.number("hidden_size"), keys.number("num_attention_heads")
    longest, depth = keys.number("max_position_embeddings"), keys.number("num_hidden_layers")
    biased = keys.flag("attention_bias", False) if kind.biases == "key" else False
    ff_biased = keys.flag("mlp_bias", False) if kind.mlp_bias else False
    attention = {
        "dim_head": keys.number("head_dim", dim // heads),
        "kv_heads": keys.number("num_key_value_heads", kind.kv_heads or heads),
        "window": _window_from(keys, kind, depth),
        "bias": biased or kind.biases == "qkv",
        "bias_out": biased,
    }
    if kind.name == "qwen3":
        attention |= {"qk_rmsnorm": True, "shared_norm_gain": True}
    expert = _feedforward(keys.number("intermediate_size"), dim) | {
        "kind": "glu",
        "activation": keys.activation("hidden_act"),
        "bias_in": ff_biased,
        "bias_out": ff_biased,
    }
    moe: Tree = {"kind": "moe", "expert": expert}
    if kind.name == "mixtral":
        moe["experts"] = keys.number("num_local_experts")
        moe["top_k"] = keys.number("num_experts_per_tok", 2)
        if moe["top_k"] == 1:
            raise CheckpointError(
                f"{keys.where}: num_experts_per_tok is 1; there the one expert's weight is scaled "
                "to 1, here it is its probability: another model"
            )
    rope = {n: keys.take(n, None) for n in ("rope_theta", "rope_scaling", "rope_parameters")}
    rope = {name: value for name, value in rope.items() if value is not None}
    return {
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "max_seq_len": longest,
        "attention": attention,
        "feedforward": moe if kind.name == "mixtral" else expert,
        "position": from_rope(rope, theta=kind.rope_theta, longest=longest, where=keys.where),
        "norm": {"kind": "rmsnorm", "unit_offset": False, "eps": keys.take("rms_norm_eps")},
    }


def _window_from(keys: _Keys, kind: Family, depth: int) -> int | None:
    if kind.window == "never":
        return None
    size = keys.take("sliding_window", kind.sliding_window)
    if kind.window == "switch":
        used = keys.flag("use_sliding_window", False)
        first = keys.tree.get("max_window_layers", 28)
        plain = ["full_attention", "sliding_attention"]
        layers = [plain[used and size is not None and i >= first] for i in range(min(depth, 4096))]
        layers = keys.take("layer_types", layers)
        if layers not in ([kind] * depth for kind in plain):
            raise CheckpointError(
                f"{keys.where}: layer_types: some layers have a window and others have none; here "
                "all have the same"
            )
        size = size if used and layers[0] == plain[1] else None
    if size is None:
        return None
    if type(size) is not int or size < 1:
        raise CheckpointError(f"{keys.where}: sliding_window is {size!r:.80}; give 1 or more")
    return size - 1


def _from_gpt2(keys: _Keys) -> Tree:
    dim, heads = keys.number("n_embd"), keys.number("n_head")
    inner = keys.number("n_inner", 4 * dim)
    return {
        "dim": dim,
        "depth": keys.number("n_layer"),
        "heads": heads,
        "max_seq_len": keys.number("n_positions"),
        "attention": {"dim_head": dim // heads, "bias": True, "bias_out": True},
        "feedforward": _feedforward(inner, dim)
        | {
            "kind": "mlp",
            "activation": keys.activation("activation_function", "gelu_new"),
            "bias_in": True,
            "bias_out": True,
        },
        "position": {"kind": "learned"},
        "norm": {
            "kind": "layernorm",
            "unit_offset": False,
            "bias": True,
            "eps": keys.take("layer_norm_epsilon", 1e-5),
        },
    }


def _feedforward(inner: int, dim: int) -> Tree:
    """The factor of ``dim`` that gives ``inner``."""
    mult = inner / dim
    return {"mult": mult if int(dim * mult) == inner else (inner + 0.5) / dim, "multiple_of": 1}


class _Keys:
    """The keys of a config.json, each of which is used, known to have no effect, or an error."""

    def __init__(self, tree: Mapping[str, Any], where: str) -> None:
        self.tree, self.where = tree, where
        self._used: set[str] = set()

    def take(self, name: str, *default: Any) -> Any:
        self._used.add(name)
        if name not in self.tree and not default:
            raise CheckpointError(f"{self.where}: {name} is missing; add it")
        return self.tree.get(name, *default)

    def number(self, name: str, *default: int) -> int:
        value = self.take(name, *default)
        value = default[0] if value is None and default else value
        if type(value) is not int or not 0 < value < 2**31:
            raise CheckpointError(
                f"{self.where}: {name} is {value!r:.80}; it must be a whole number"
            )
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        if type(value) is not bool:
            raise CheckpointError(
                f"{self.where}: {name} is {value!r:.80}; it must be true or false"
            )
        return value

    def activation(self, name: str, *default: str) -> str:
        value = self.take(name, *default)
        if not isinstance(value, str) or value not in ACTIVATIONS_BACK:
            known = ", ".join(ACTIVATIONS_BACK)
            raise CheckpointError(f"{self.where}: {name} is {value!r:.80}; {known} are known here")
        return ACTIVATIONS_BACK[value]

    def check_fixed(self) -> None:
        for name, allowed in FIXED.items():
            if name in self.tree:
                value = self.take(name)
                if not any(
                    value == v for v in (allowed if isinstance(allowed, tuple) else (allowed,))
                ):
                    raise CheckpointError(
                        f"{self.where}: {name} is {value!r:.80}: a model that can't be taken over"
                    )

    def check_used(self) -> None:
        """Raises CheckpointError for what nobody has asked for."""
        left = sorted(set(self.tree) - self._used - NO_EFFECT)
        if "auto_map" in left:
            raise CheckpointError(
                f"{self.where}: auto_map: the model is Python code of its own, which is never run"
            )
        if left:
            raise CheckpointError(
                f"{self.where}: {left[0]!s:.80} ({self.tree[left[0]]!r:.80}): nothing here knows "
                "such a key; if it changes no logits, remove it"
            )
