"""Where a positional part stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PositionGeometry:
    """What a positional part takes from the stack that it stands in."""

    dim: int
    heads: int
    kv_heads: int
    dim_head: int
    causal: bool
