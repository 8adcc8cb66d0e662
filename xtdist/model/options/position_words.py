"""How positions are said in x-transformers' keywords and weights, and in ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.model.options.base import SKIP
from xtdist.model.options.weights import Context


def rotated(dim: int | None, given: Mapping[str, Any]) -> int:
    """There, half of each head is rotated unless said otherwise."""
    return dim or given["attn_dim_head"] // 2


def rotated_back(dim: int | None, tree: Mapping[str, Any]) -> int | None:
    """The way back."""
    dim_head = tree["attention"]["dim_head"]
    return None if (dim or dim_head) == dim_head // 2 else dim or dim_head


def disabled(off: bool | None, given: Mapping[str, Any]) -> Any:
    """``disable_abs_pos_emb``: None lets the other keywords say whether positions are learned."""
    inside = [k for k in ("rotary_pos_emb", "rotary_xpos", "polar_pos_emb") if given[k]]
    if inside and off is False:
        raise ConfigError(
            f"{inside[0]}=True with disable_abs_pos_emb=False asks for {inside[0]} and learned "
            "positions together, which xtdist lacks; leave out one of the two"
        )
    return "none" if off and not inside else SKIP


def kept_learned(kind: str, tree: Mapping[str, Any]) -> Any:
    """False where positions are learned although a bias usually replaces them."""
    bias = tree["position_bias"]
    replaced = bias is not None and bias["kind"] == "t5"
    return False if kind in ("learned", "sinusoidal") and replaced else SKIP


def replaced_by_bias(on: bool, given: Mapping[str, Any]) -> Any:
    """T5's bias takes learned positions away."""
    return "none" if on and given["disable_abs_pos_emb"] is not False else SKIP


def absolute(on: bool, given: Mapping[str, Any]) -> Any:
    """``use_abs_pos_emb=False`` takes learned positions away, and nothing else."""
    return SKIP if on or given["position"]["kind"] != "learned" else "none"


def absolute_back(kind: str, tree: Mapping[str, Any]) -> Any:
    """The way back."""
    return False if kind == "none" else SKIP


def sinusoidal(on: bool, given: Mapping[str, Any]) -> Any:
    """``scaled_sinu_pos_emb`` instead of learned positions, where there are some."""
    if on and (kind := given["position"]["kind"]) != "learned":
        raise ConfigError(f"scaled_sinu_pos_emb: has no effect on {kind} positions; leave it out")
    return "sinusoidal" if on and given["use_abs_pos_emb"] else SKIP


def is_sinusoidal(kind: str, tree: Mapping[str, Any]) -> bool:
    """The way back."""
    return kind == "sinusoidal"


def has_xpos(base: int | None, tree: Mapping[str, Any]) -> bool:
    """The way back of ``rotary_xpos``."""
    return base is not None


def slopes(kwargs: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """``rel_pos_kwargs`` holds ALiBi's slopes, or nothing."""
    if not kwargs:
        return SKIP
    if set(kwargs) != {"slopes"} or not given["alibi_pos_bias"]:
        raise ConfigError(f"rel_pos_kwargs: got {kwargs}; only slopes of alibi_pos_bias are known")
    return list(kwargs["slopes"])


def slopes_back(given: list[float] | None, tree: Mapping[str, Any]) -> Any:
    """The way back."""
    return SKIP if given is None else {"slopes": list(given)}


def inverse_frequencies(context: Context) -> Tensor:
    """The buffer that x-transformers keeps for its rotation."""
    position, head = context.config.position, context.config.attention.dim_head
    dim = position.dim or head
    theta = position.theta * position.theta_rescale ** (dim / (dim - 2)) if dim > 2 else 1.0
    return 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)


def xpos_scale(context: Context) -> Tensor:
    """Its buffer of xPos."""
    dim = context.config.position.dim or context.config.attention.dim_head
    return (torch.arange(0, dim, 2) + 0.4 * dim) / (1.4 * dim)


def polar_frequencies(context: Context) -> Tensor:
    """Its buffer of polar positions."""
    dim = context.config.attention.dim_head
    return 1.0 / context.config.position.theta ** (torch.arange(0, dim).float() / dim)


def is_interpolated(config: Any) -> bool:
    """A factor other than one."""
    return bool(getattr(config.position, "interpolation", 1.0) != 1.0)


def is_rescaled(config: Any) -> bool:
    """A factor other than one."""
    return bool(getattr(config.position, "theta_rescale", 1.0) != 1.0)


def learned_scale(config: Any) -> float:
    """There, learned positions are scaled when they are added."""
    return float(config.dim) ** -0.5
