"""Which of transformers' architectures a model is, and which of its settings prevent that.

What a ``config.json`` can say of a model is turned back into a config of ours; where that is
another model, the settings that differ are what prevents it. So a setting that nobody has thought
of here prevents an export too, instead of getting lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from xtdist.checkpoint.huggingface.configs import from_tree, to_tree
from xtdist.checkpoint.huggingface.families import ACTIVATIONS, FAMILIES, Family
from xtdist.checkpoint.huggingface.rope import based
from xtdist.config import CheckpointError, ConfigError, from_mapping, to_mapping
from xtdist.model.config import ModelConfig
from xtdist.model.mup import plain_config
from xtdist.nn.feedforward import MoEConfig
from xtdist.nn.feedforward.config import inner_dim
from xtdist.nn.position.config import LearnedConfig, RotaryConfig, YarnConfig

QK_EPS = 1e-6  # of the norms of queries and keys
Tree = dict[str, Any]

ONLY_TRAINING = (
    "recompute",
    "branch_init",
    "layer_dropout",
    "context_dropout",
    "emb_dropout",
    "embedding.gradient",
    "attn_z_loss_weight",
    "input_not_include_cache",
    "attention.backend",
    "attention.dropout",
    "attention.dropout_out",
    "attention.zero_init_out",
    "feedforward.dropout",
    "feedforward.dropout_out",
    "feedforward.zero_init_output",
    "feedforward.expert.dropout",
    "feedforward.expert.dropout_out",
    "feedforward.expert.zero_init_output",
    "feedforward.balance_loss_weight",
    "feedforward.z_loss_weight",
)
"""Places in a config that change no logits in evaluation."""
OTHER_FORM = ("norm.unit_offset", "position.layout", "position.theta_rescale")
"""Places that say how the same function is written down; tensors are converted."""


@dataclass(frozen=True)
class Problem:
    """A setting that prevents an export: its place in the model's config, its value, and what it
    would have to be."""

    place: str
    value: Any
    needed: Any

    def line(self, *, prefix: str = "model.") -> str:
        """One line for people."""
        if self.place == "objective.kind":
            prefix = ""
        return f"{prefix}{self.place}: got {_shown(self.value)}, must be {_shown(self.needed)}"


def family_of(config: ModelConfig) -> Family:
    """The architecture that is nearest to ``config``."""
    attention, ff = config.attention, config.feedforward
    expert = ff.expert if isinstance(ff, MoEConfig) else ff
    if isinstance(config.position, LearnedConfig) and ff.kind != "glu":
        return FAMILIES["gpt2"]
    if isinstance(ff, MoEConfig):
        return FAMILIES["mixtral"]
    if attention.qk_rmsnorm:
        return FAMILIES["qwen3"]
    if attention.bias and not attention.bias_out and not (expert.bias_in or expert.bias_out):
        return FAMILIES["qwen2"]
    if attention.window is not None or config.dim % config.heads:
        return FAMILIES["mistral"]  # LlamaConfig refuses heads that do not divide the width
    return FAMILIES["llama"]


def blocking(config: ModelConfig, kind: Family) -> tuple[Problem, ...]:
    """All that prevents an export of ``config`` as ``kind``, in the order of their places; empty:
    nothing does. Sizes that are not known before training count as 1."""
    try:
        config = plain_config(config)
    except ConfigError:
        return (Problem("mup.base_dim_head", config.mup and config.mup.base_dim_head, None),)
    config = replace(config, num_tokens=config.num_tokens or 1, max_seq_len=config.max_seq_len or 1)
    found = {p.place: p for p in _special(config, kind)}
    try:
        tree = from_tree(to_tree(config, kind), where="config.json")
        same = from_mapping(ModelConfig, tree)
    except (ConfigError, CheckpointError) as e:
        return tuple(found.values()) or (Problem("", "this model", f"another one ({e})"),)
    for problem in _differences(_normal(config, kind), _normal(same, kind)):
        found.setdefault(problem.place, problem)
    return tuple(found[place] for place in sorted(found))


def _special(config: ModelConfig, kind: Family) -> Iterator[Problem]:
    """What the comparison can't see, or says worse."""
    ff = config.feedforward
    expert = ff.expert if isinstance(ff, MoEConfig) else ff
    if kind.name == "mixtral" and not isinstance(ff, MoEConfig):
        yield Problem("feedforward.kind", ff.kind, "moe")
    if kind.name == "llama" and config.dim % config.heads:
        fits = max(h for h in range(1, config.heads + 1) if config.dim % h == 0)
        yield Problem("heads", config.heads, f"{fits}, or another that divides dim={config.dim}")
    if kind.name == "mixtral" and isinstance(ff, MoEConfig) and ff.top_k == 1:
        yield Problem("feedforward.top_k", 1, "2 or more (one weight would be scaled to 1 there)")
    if config.attention.qk_rmsnorm and kind.name == "qwen3":
        eps = getattr(config.norm, "eps", QK_EPS)
        if eps != QK_EPS:
            yield Problem("norm.eps", eps, QK_EPS)
    if expert.activation not in ACTIVATIONS:
        place = "feedforward.expert" if expert is not ff else "feedforward"
        yield Problem(f"{place}.activation", expert.activation, "one of " + ", ".join(ACTIVATIONS))


def _normal(config: ModelConfig, kind: Family) -> Tree:
    """The config as a tree in which equal models are equal."""
    tree = to_mapping(config)
    ff, attention = config.feedforward, tree["attention"]
    position = tree["position"]
    attention["kv_heads"] = config.attention.kv_heads or config.heads
    attention["value_dim_head"] = config.attention.value_dim_head or config.attention.dim_head
    attention["bias"], attention["bias_out"] = _biases(config, kind)
    for part, shape in (
        (tree["feedforward"], ff),
        (tree["feedforward"].get("expert"), getattr(ff, "expert", None)),
    ):
        if part is None or isinstance(shape, MoEConfig) or shape is None:
            continue
        part["inner width"] = inner_dim(shape, config.dim)
        del part["mult"], part["multiple_of"]
        if kind.name == "gpt2" or kind.mlp_bias:
            biased = kind.name == "gpt2" or shape.bias_in or shape.bias_out
            part["bias_in"] = part["bias_out"] = biased
    if kind.name == "gpt2" and "bias" in tree["norm"]:
        tree["norm"]["bias"] = True
    if isinstance(config.position, RotaryConfig):
        position["dim"] = config.rotary_dim
        position["theta"] = based(config.position, config.attention.dim_head)
        scaling = config.position.scaling
        if isinstance(scaling, YarnConfig):
            position["scaling"]["attention_factor"] = scaling.amplitude
    for place in (*ONLY_TRAINING, *OTHER_FORM):
        _drop(tree, place.split("."))
    return tree


def _biases(config: ModelConfig, kind: Family) -> tuple[bool, bool]:
    """Biases of zero are added where the family has them anyway."""
    bias, out = config.attention.bias, config.attention.bias_out
    if kind.biases == "always":
        return True, True
    if kind.biases == "key":
        return bias or out, bias or out
    return (True, out) if kind.biases == "qkv" else (bias, out)


def _drop(tree: Any, keys: list[str]) -> None:
    for key in keys[:-1]:
        tree = tree.get(key)
        if not isinstance(tree, dict):
            return
    tree.pop(keys[-1], None)


def _differences(ours: Any, theirs: Any, place: str = "") -> Iterator[Problem]:
    """Where two trees differ; of parts of different kinds the kind alone."""
    if not (isinstance(ours, Mapping) and isinstance(theirs, Mapping)):
        if ours != theirs:
            yield Problem(place, ours, theirs)
        return
    if ours.get("kind") != theirs.get("kind"):
        yield Problem(f"{place}.kind", ours.get("kind"), theirs.get("kind"))
        return
    for key in sorted({*ours, *theirs}):
        here = f"{place}.{key}" if place else key
        yield from _differences(ours.get(key), theirs.get(key), here)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key}: {_shown(v)}" for key, v in value.items() if v is not None)
        return f"{{{inside}}}"
    return str(value)
