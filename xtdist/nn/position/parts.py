"""Positional parts inside an attention layer, as configs: they read queries, scores or the
layer's input, so each layer has its own."""

from __future__ import annotations

from xtdist.config import (
    ConfigError,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    configclass,
)
from xtdist.nn.position.cope import CoPE
from xtdist.nn.position.forgetting import Forgetting, ForgettingPerRow
from xtdist.nn.position.geometry import PositionGeometry
from xtdist.nn.position.relative_projection import RelativeProjection


@configclass
class CoPEConfig:
    """Positions counted by the content (CoPE, 2405.18719; causal only): a part of attention.

    ``max_pos`` learned vectors; ``soft_onehot`` weighs them by nearness with ``temperature``
    instead of interpolating between two; ``talking_heads`` mixes the scores that are counted.
    """

    max_pos: PositiveInt = 16
    soft_onehot: bool = False
    talking_heads: bool = False
    temperature: PositiveFloat = 0.05

    def build(self, geometry: PositionGeometry) -> CoPE:
        """The module of one attention layer."""
        return CoPE(
            geometry.dim_head,
            heads=geometry.heads,
            max_pos=self.max_pos,
            temperature=self.temperature if self.soft_onehot else None,
            talking_heads=self.talking_heads,
        )


@configclass
class ForgettingConfig:
    """Learned forget gates along the sequence (openreview q2Lnyegkr8): a part of attention.

    ``per_row`` lets each query decide what it forgets, by queries and keys of ``dim_head``
    (causal only; ``bias_init`` has no place there). ``bias_init``: the gates' first bias, higher =
    forgets less. ``log_scale`` multiplies the logarithm of the gates.
    """

    per_row: bool = False
    dim_head: PositiveInt = 8
    bias_init: FiniteFloat = 5.0
    log_scale: NonNegativeFloat = 1.0

    def build(self, geometry: PositionGeometry) -> Forgetting | ForgettingPerRow:
        """The module of one attention layer."""
        if not self.per_row:
            return Forgetting(
                geometry.dim,
                heads=geometry.heads,
                causal=geometry.causal,
                bias_init=self.bias_init,
                log_scale=self.log_scale,
            )
        if not geometry.causal:
            raise ConfigError(
                "forgetting.per_row: each query forgets along its past, so the stack must be "
                "causal; use per_row=false in a bidirectional one"
            )
        return ForgettingPerRow(
            geometry.dim, heads=geometry.heads, dim_head=self.dim_head, log_scale=self.log_scale
        )


@configclass
class RelativeProjectionConfig:
    """Each query mixes ``basis`` learned curves over distances below ``max_distance``, and what
    they say about its past is added to its scores: a part of attention."""

    basis: PositiveInt = 16
    max_distance: PositiveInt = 1024

    def build(self, geometry: PositionGeometry) -> RelativeProjection:
        """The module of one attention layer."""
        return RelativeProjection(
            geometry.dim, heads=geometry.heads, basis=self.basis, max_distance=self.max_distance
        )
