"""How the learning rate goes up and down. The formulas are in :mod:`xtdist.optim.schedules`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from xtdist.config import Fraction, NonNegativeInt, PositiveInt, configclass


@configclass
class CosineConfig:
    """Half a cosine from lr to ``min_ratio * lr`` (https://arxiv.org/abs/1608.03983).

    Of every schedule: ``warmup_steps`` lead up to lr, from ``warmup_start * lr``, in a straight
    line or in half a cosine.
    """

    kind: Literal["cosine"] = "cosine"
    warmup_steps: NonNegativeInt = 100
    warmup_shape: Literal["linear", "cosine"] = "linear"
    warmup_start: Fraction = 0.0
    min_ratio: Fraction = 0.1


@configclass
class LinearConfig:
    """A straight line from lr to ``min_ratio * lr``."""

    kind: Literal["linear"] = "linear"
    warmup_steps: NonNegativeInt = 100
    warmup_shape: Literal["linear", "cosine"] = "linear"
    warmup_start: Fraction = 0.0
    min_ratio: Fraction = 0.0


@configclass
class WSDConfig:
    """Warm-up, stable, decay (https://arxiv.org/abs/2404.06395): lr stays up, then falls over the
    last ``decay_steps`` (or ``decay_fraction`` of all steps, if null): in a straight line, in half
    a cosine, or as 1 - sqrt (https://arxiv.org/abs/2405.18392)."""

    kind: Literal["wsd"] = "wsd"
    warmup_steps: NonNegativeInt = 100
    warmup_shape: Literal["linear", "cosine"] = "linear"
    warmup_start: Fraction = 0.0
    decay_fraction: Fraction = 0.2
    decay_steps: PositiveInt | None = None
    decay_shape: Literal["linear", "cosine", "sqrt"] = "linear"
    min_ratio: Fraction = 0.0


@configclass
class ConstantConfig:
    """lr stays up after the warm-up."""

    kind: Literal["constant"] = "constant"
    warmup_steps: NonNegativeInt = 0
    warmup_shape: Literal["linear", "cosine"] = "linear"
    warmup_start: Fraction = 0.0


@configclass
class InverseSqrtConfig:
    """lr * sqrt(warmup / step), with no end (https://arxiv.org/abs/1706.03762, section 5.3), but
    never below ``min_ratio * lr``."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup_steps: NonNegativeInt = 100
    warmup_shape: Literal["linear", "cosine"] = "linear"
    warmup_start: Fraction = 0.0
    min_ratio: Fraction = 0.0


ScheduleConfig: TypeAlias = Annotated[
    CosineConfig | LinearConfig | WSDConfig | ConstantConfig | InverseSqrtConfig,
    Field(discriminator="kind"),
]
