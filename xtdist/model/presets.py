"""Models of known shape by name: ``preset("llama-125m")``.

Two families. Llama: rotary positions, RMSNorm, SwiGLU, no biases; embedding and head are one matrix
up to 350M and two above, where queries also share keys. GPT-2: learned positions, LayerNorm, GELU,
biases in the feed-forward layers, embedding and head one matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.config.fields import nearest
from xtdist.config.load import changes_part
from xtdist.model.config import ModelConfig
from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.feedforward import GLUConfig, MLPConfig
from xtdist.nn.norm import LayerNormConfig, RMSNormConfig
from xtdist.nn.position.config import LearnedConfig, RotaryConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A shape without vocabulary and length, which follow from the data.

    ``parameters``: roughly, with ``num_tokens`` and ``max_seq_len``, which are customary for it.
    """

    config: ModelConfig
    parameters: float
    num_tokens: int
    max_seq_len: int


def _llama(
    parameters: float,
    *,
    dim: int,
    depth: int,
    attention: AttentionConfig,
    inner: int | None = None,
    num_tokens: int = 32_000,
) -> Preset:
    """``inner``: width of the feed-forward layers, 8/3 of ``dim`` unless given."""
    feedforward = GLUConfig() if inner is None else GLUConfig(mult=inner / dim)
    config = ModelConfig(
        dim=dim,
        depth=depth,
        heads=dim // attention.dim_head,
        attention=attention,
        position=RotaryConfig(),
        norm=RMSNormConfig(eps=1e-5),
        feedforward=feedforward,
        tie_embedding=parameters < 1e9,
    )
    context = 2048 if parameters < 1e9 else 4096
    return Preset(config=config, parameters=parameters, num_tokens=num_tokens, max_seq_len=context)


def _gpt2(
    parameters: float, *, dim: int, depth: int, dim_head: int = 64, num_tokens: int = 50_257
) -> Preset:
    config = ModelConfig(
        dim=dim,
        depth=depth,
        heads=dim // dim_head,
        attention=AttentionConfig(dim_head=dim_head),
        position=LearnedConfig(),
        norm=LayerNormConfig(),
        feedforward=MLPConfig(bias_in=True, bias_out=True),
        tie_embedding=True,
    )
    context = 1024 if parameters < 1e9 else 2048
    return Preset(config=config, parameters=parameters, num_tokens=num_tokens, max_seq_len=context)


SMALL = AttentionConfig(dim_head=64)
BYTES = 259
"""The vocabulary of the byte tokenizer."""

PRESETS: Mapping[str, Preset] = {
    "llama-tiny": _llama(0.9e6, dim=128, depth=4, attention=SMALL, num_tokens=BYTES),
    "llama-25m": _llama(25e6, dim=384, depth=8, attention=SMALL),
    "llama-125m": _llama(125e6, dim=768, depth=14, attention=SMALL),
    "llama-350m": _llama(350e6, dim=1024, depth=24, attention=SMALL),
    "llama-1b": _llama(
        1e9, dim=2048, depth=20, attention=AttentionConfig(dim_head=64, kv_heads=8), inner=5632
    ),
    "llama-7b": _llama(
        7e9, dim=4096, depth=32, attention=AttentionConfig(dim_head=128, kv_heads=8), inner=14336
    ),
    "gpt2-tiny": _gpt2(0.9e6, dim=128, depth=4, num_tokens=BYTES),
    "gpt2-25m": _gpt2(25e6, dim=320, depth=7),
    "gpt2-125m": _gpt2(125e6, dim=768, depth=12),
    "gpt2-350m": _gpt2(350e6, dim=1024, depth=24),
    "gpt2-1b": _gpt2(1e9, dim=1536, depth=32),
    "gpt2-7b": _gpt2(7e9, dim=4096, depth=32, dim_head=128),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """The config called ``name``, with ``changes`` to its fields. A mapping changes single fields
    of a part; with another ``kind`` than the part has it replaces it.

    Raises:
        ConfigError: an unknown name, field or value, with the nearest one that is known.

    Example:
        >>> preset("llama-125m", num_tokens=32_000, max_seq_len=1024, depth=24).depth
        24
        >>> preset("llama-1b", attention={"window": 512}).attention.kv_heads
        8
    """
    if "preset" in changes:
        raise ConfigError(
            f"preset: got {name!r} and preset={changes['preset']!r}; name one of them"
        )
    plain = {key: _plain(value) for key, value in changes.items()}
    return from_mapping(ModelConfig, expand({"preset": name, **plain}), where=name)


def expand(model: Mapping[str, Any]) -> dict[str, Any]:
    """A plain mapping with ``preset: name`` as the full one; what else it holds comes on top, not
    checked yet.

    Raises:
        ConfigError: an unknown name, with the nearest one that is known.
    """
    changes = {key: value for key, value in model.items() if key != "preset"}
    if "preset" not in model:
        return changes
    name = model["preset"]
    if not isinstance(name, str):
        raise ConfigError(f"preset: got {name!r}; give a name: {', '.join(PRESETS)}")
    if name not in PRESETS:
        holding = [repr(known) for known in PRESETS if name and name.lower() in known]
        near = holding or [repr(n) for n in (nearest(name.lower(), PRESETS),) if n]
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(PRESETS)}"
        raise ConfigError(f"preset: got {name!r}; {hint}")
    return merged(to_mapping(PRESETS[name].config), changes)


def merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``: of single fields of a part, or, with another ``kind``, of all."""
    tree = dict(base)
    for key, value in changes.items():
        old = tree.get(key)
        part = isinstance(value, Mapping) and isinstance(old, dict) and changes_part(old, value)
        tree[key] = merged(old, value) if part else value  # type: ignore[arg-type]
    return tree


def _plain(value: Any) -> Any:
    return to_mapping(value) if dataclasses.is_dataclass(value) else value
