"""The choice of positions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xtdist.config import PositiveFloat, PositiveInt, configclass


@configclass
class RotaryConfig:
    """Rotary positions (RoPE, 2104.09864) on queries and keys, interleaved pairs.

    ``dim`` leading channels of each head are rotated; null = the whole head.
    """

    kind: Literal["rotary"] = "rotary"
    theta: PositiveFloat = 10000.0
    dim: PositiveInt | None = None


@configclass
class LearnedConfig:
    """One learned vector for each of ``max_seq_len`` positions, added to the token embedding."""

    kind: Literal["learned"] = "learned"


@configclass
class NoPositionConfig:
    """No positions: a causal model can infer order from the mask alone (NoPE, 2305.19466)."""

    kind: Literal["none"] = "none"


PositionConfig = Annotated[
    RotaryConfig | LearnedConfig | NoPositionConfig, Field(discriminator="kind")
]
