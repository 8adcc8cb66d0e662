"""What is optimized how: AdamW, its schedule, clipping.

YAML: ``optim: {kind: adamw, lr: 3e-4, schedule: {kind: cosine, warmup_steps: 100}}``
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from xtdist.config import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    configclass,
)


@configclass
class CosineConfig:
    """Half a cosine from lr to ``min_ratio * lr`` (https://arxiv.org/abs/1608.03983)."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: NonNegativeInt = 100
    min_ratio: Fraction = 0.1


@configclass
class LinearConfig:
    """A straight line from lr to ``min_ratio * lr``."""

    kind: Literal["linear"] = "linear"
    warmup_steps: NonNegativeInt = 100
    min_ratio: Fraction = 0.0


@configclass
class WSDConfig:
    """Warm-up, stable, decay (https://arxiv.org/abs/2404.06395): lr stays up, then falls in a
    straight line over the last ``decay_steps`` (or ``decay_fraction`` of all steps, if null)."""

    kind: Literal["wsd"] = "wsd"
    warmup_steps: NonNegativeInt = 100
    decay_fraction: Fraction = 0.2
    decay_steps: PositiveInt | None = None
    min_ratio: Fraction = 0.0


@configclass
class ConstantConfig:
    """lr stays up after the warm-up."""

    kind: Literal["constant"] = "constant"
    warmup_steps: NonNegativeInt = 0


@configclass
class InverseSqrtConfig:
    """lr * sqrt(warmup / step), with no end (https://arxiv.org/abs/1706.03762, section 5.3)."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup_steps: NonNegativeInt = 100


ScheduleConfig: TypeAlias = Annotated[
    CosineConfig | LinearConfig | WSDConfig | ConstantConfig | InverseSqrtConfig,
    Field(discriminator="kind"),
]


@configclass
class AdamWConfig:
    """AdamW (https://arxiv.org/abs/1711.05101). ``grad_clip`` is the largest global gradient
    norm (0 = no clipping). ``decay_embeddings``: see :func:`xtdist.optim.groups.param_groups`."""

    kind: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 3e-4
    betas: tuple[Probability, Probability] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    decay_embeddings: bool = False
    grad_clip: NonNegativeFloat = 1.0
    schedule: ScheduleConfig = CosineConfig()


OptimConfig: TypeAlias = AdamWConfig  # a tagged union as soon as there is a second kind
