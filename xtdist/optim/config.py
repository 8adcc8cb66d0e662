"""What is optimized how: AdamW or Muon, groups, schedule, clipping, averaged weights.

YAML: ``optim: {kind: adamw, lr: 3e-4, schedule: {kind: cosine, warmup_steps: 100}}``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from xtdist.config import (
    ConfigError,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    configclass,
)
from xtdist.optim.schedule_config import CosineConfig, ScheduleConfig


@configclass
class GroupConfig:
    """Other settings for the parameters whose name matches.

    Attributes:
        match: a glob of the whole name, as in the checkpoint's weights (``*.to_out.weight``).
        lr_scale: times the learning rate; 0 leaves them as they are.
        weight_decay: of all of them; null keeps what they would have.
        optimizer: ``adamw`` takes matrices from Muon; null keeps the optimizer they would have.
    """

    match: str
    lr_scale: NonNegativeFloat = 1.0
    weight_decay: NonNegativeFloat | None = None
    optimizer: Literal["adamw"] | None = None

    def __post_init__(self) -> None:
        if not self.match.strip():
            raise ConfigError(
                "match: got an empty text; give a glob of parameter names, '*.norm.*' for example"
            )


@configclass
class EmaConfig:
    """An exponential moving average of the fp32 weights, kept and sharded as they are.

    Attributes:
        decay: weight of what was, in each update of the average.
        every: optimizer steps from one update of the average to the next.
        evaluate: whether each validation is done with the averaged weights, too.
        warmup: ``debias`` weighs as Adam's bias correction does, so that the first weights have no
            more weight than decay gives them; ``ramp`` is min(decay, n / (n + 9)) for the n-th
            update; ``none`` is decay from the second update on. Each starts as a copy.
    """

    decay: Probability = 0.999
    every: PositiveInt = 1
    evaluate: bool = True
    warmup: Literal["debias", "ramp", "none"] = "debias"


@configclass
class AdamWConfig:
    """AdamW (https://arxiv.org/abs/1711.05101). ``grad_clip`` is the largest global gradient
    norm (0 = no clipping). ``decay_embeddings``: see :func:`xtdist.optim.groups.param_groups`.
    ``groups``: the first that matches a parameter's name counts."""

    kind: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 3e-4
    betas: tuple[Probability, Probability] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    decay_embeddings: bool = False
    grad_clip: NonNegativeFloat = 1.0
    groups: tuple[GroupConfig, ...] = ()
    schedule: ScheduleConfig = CosineConfig()
    ema: EmaConfig | None = None


@configclass
class MuonConfig:
    """Muon for hidden matrices (https://kellerjordan.github.io/posts/muon), AdamW for the rest.

    ``lr``, ``momentum``, ``nesterov``, ``weight_decay`` are of the matrices; ``adamw_lr`` (null:
    the same), ``betas``, ``eps``, ``adamw_weight_decay`` of the rest. ``grad_clip`` is of the
    gradient, before anything is made orthogonal.

    Attributes:
        scale: of an orthogonal update of a matrix with ``out`` rows and ``in`` columns.
            ``adamw_rms``: 0.2 sqrt(max(out, in)), so that AdamW's lr fits
            (https://arxiv.org/abs/2502.16982); ``original``: sqrt(max(1, out / in)), with lr
            around 0.02 and an adamw_lr of its own.
        ns_steps: of the Newton-Schulz iteration.
        ns_precision: what it multiplies in.
    """

    kind: Literal["muon"] = "muon"
    lr: PositiveFloat = 3e-4
    momentum: Probability = 0.95
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 0.1
    scale: Literal["adamw_rms", "original"] = "adamw_rms"
    ns_steps: Annotated[int, Field(ge=1, le=20)] = 5
    ns_precision: Literal["bf16", "fp32"] = "bf16"
    adamw_lr: PositiveFloat | None = None
    betas: tuple[Probability, Probability] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    adamw_weight_decay: NonNegativeFloat = 0.1
    decay_embeddings: bool = False
    grad_clip: NonNegativeFloat = 1.0
    groups: tuple[GroupConfig, ...] = ()
    schedule: ScheduleConfig = CosineConfig()
    ema: EmaConfig | None = None


def _kind(value: Any) -> Any:
    """AdamW where nothing is said."""
    if isinstance(value, Mapping):
        return value.get("kind", "adamw")
    return getattr(value, "kind", "adamw")


OptimConfig: TypeAlias = Annotated[
    Annotated[AdamWConfig, Tag("adamw")] | Annotated[MuonConfig, Tag("muon")],
    Discriminator(_kind),
]
