"""Options of positions (``position``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.model.options.base import SKIP, Fixed, Option, Row, Sample
from xtdist.model.options.weights import Context, Derived, Rule, Scaled


def rotated(dim: int | None, given: Mapping[str, Any]) -> int:
    """There, half of each head is rotated unless said otherwise."""
    return dim or given["attn_dim_head"] // 2


def rotated_back(dim: int | None, tree: Mapping[str, Any]) -> int | None:
    """The way back."""
    dim_head = tree["attention"]["dim_head"]
    return None if (dim or dim_head) == dim_head // 2 else dim or dim_head


def disabled(off: bool | None, given: Mapping[str, Any]) -> Any:
    """``disable_abs_pos_emb``: None lets the other keywords say whether positions are learned."""
    if given["rotary_pos_emb"]:
        if off is False:
            raise ConfigError(
                "rotary_pos_emb=True with disable_abs_pos_emb=False asks for rotary and learned "
                "positions together, which xtdist does not have; leave out one of the two"
            )
        return SKIP
    return "none" if off else SKIP


def absolute(on: bool, given: Mapping[str, Any]) -> Any:
    """``use_abs_pos_emb=False`` takes learned positions away, and nothing else."""
    return SKIP if on or given["position"]["kind"] != "learned" else "none"


def absolute_back(kind: str, tree: Mapping[str, Any]) -> bool:
    """The way back."""
    return kind != "none"


def never(value: Any, tree: Mapping[str, Any]) -> None:
    """Another keyword says it on the way back."""


def inverse_frequencies(context: Context) -> Tensor:
    """The buffer that x-transformers keeps for its rotation."""
    position = context.config.position
    dim = position.dim or context.config.attention.dim_head
    return 1.0 / position.theta ** (torch.arange(0, dim, 2).float() / dim)


def learned_scale(config: Any) -> float:
    """There, learned positions are scaled when they are added."""
    return float(config.dim) ** -0.5


OPTIONS: tuple[Option, ...] = (
    Option(
        name="learned positions",
        about="one learned vector for each position, added to the embedding",
        active="position.kind=learned",
        paper="1706.03762",
        rows=(
            Fixed("position.kind", "learned"),
            Row("disable_abs_pos_emb", "position.kind", None, into=disabled, back=never),
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
        name="no positions",
        about="order from the causal mask alone (NoPE)",
        active="position.kind=none",
        paper="2305.19466",
        samples=(
            Sample(wrapper={"use_abs_pos_emb": False}),
            Sample({"disable_abs_pos_emb": True}),
        ),
    ),
    Option(
        name="rotary positions",
        about="queries and keys turned by their position (RoPE)",
        active="position.kind=rotary",
        paper="2104.09864",
        rows=(
            Row("rotary_pos_emb", "position.kind", False, {True: "rotary"}),
            Row(
                "rotary_emb_dim",
                "position.dim",
                None,
                needs="rotary_pos_emb",
                into=rotated,
                back=rotated_back,
            ),
        ),
        samples=(
            Sample({"rotary_pos_emb": True}),
            Sample({"rotary_pos_emb": True, "rotary_emb_dim": 16}),
        ),
        weights=(Derived("layers", "rotary_pos_emb.inv_freq", inverse_frequencies),),
    ),
)
