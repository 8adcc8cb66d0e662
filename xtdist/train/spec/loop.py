"""Length of a run and what happens on its way."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from xtdist.config import (
    ConfigError,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    configclass,
)
from xtdist.train.spec.aside import AsideSpec


@configclass
class EarlyStopSpec:
    """End the run, as finished, when ``metric`` (lower is better) got no better by more than
    ``min_delta`` in ``patience`` validations."""

    metric: str = "eval/valid/loss"
    patience: PositiveInt = 5
    min_delta: NonNegativeFloat = 0.0


@configclass
class ProfileSpec:
    """Trace ``steps`` steps, the first of which follows ``first`` finished ones."""

    first: NonNegativeInt = 10
    steps: PositiveInt = 3


@configclass
class LoopSpec:
    """Length of the run and what happens on the way; all ``*_every`` in steps, 0 = never.

    ``valid_windows``: windows of the validation split per validation, evenly spread over it.
    ``aside``: validations and samples are of checkpoints, by a task beside the workers; null: the
    workers pause for them.
    """

    steps: Annotated[int, Field(gt=0, lt=2**40)]
    valid_every: NonNegativeInt = 100
    valid_windows: PositiveInt = 64
    sample_prompts: tuple[str, ...] = ()
    sample_tokens: PositiveInt = 48
    aside: AsideSpec | None = None
    early_stop: EarlyStopSpec | None = None
    profile: ProfileSpec | None = None

    def __post_init__(self) -> None:
        stop, trace = self.early_stop, self.profile
        if stop is not None and not self.valid_every:
            raise ConfigError("early_stop: needs validations; set valid_every to more than 0")
        if stop is not None and not re.fullmatch(r"eval/[^/]+/(loss|bits_per_byte)", stop.metric):
            raise ConfigError(
                f"early_stop.metric: got {stop.metric!r}; it is a metric of validations: "
                "eval/valid/loss, eval/valid/bits_per_byte, or those of a corpus"
            )
        if self.aside is not None and stop is not None:
            raise ConfigError(
                "early_stop: decides at the step of a validation, and with aside that is known "
                "later; leave one of them out"
            )
        if self.aside is not None and not (self.valid_every or self.sample_prompts):
            raise ConfigError(
                "aside: has nothing to do; set valid_every to more than 0, give sample_prompts, or "
                "leave it out"
            )
        if trace is not None and trace.first + trace.steps > self.steps:
            raise ConfigError(
                f"profile: steps {trace.first} to {trace.first + trace.steps}, but the run has "
                f"{self.steps}; take an earlier profile.first"
            )
