"""What a sweep is: a training config, the places in it that vary, and who is stopped early.

YAML: see ``jobs/configs/sweep_demo.yaml``.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from xtdist.config import (
    ConfigError,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    configclass,
)

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,89}$")
OURS = ("name", "output", "track.parent_run", "track.mlflow", "track.uri")
"""Places that a sweep gives each trial itself, or that are the same in all."""


@configclass
class ChoiceConfig:
    """One of ``values``, each as likely."""

    kind: Literal["choice"] = "choice"
    values: tuple[JsonValue, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("values: got none; give at least one")
        for value in self.values:
            if self.values.count(value) > 1:
                raise ConfigError(f"values: got {value!r:.80} twice; give each once")


@configclass
class UniformConfig:
    """A number between ``low`` and ``high``."""

    kind: Literal["uniform"] = "uniform"
    low: FiniteFloat
    high: FiniteFloat

    def __post_init__(self) -> None:
        _check_order(self.low, self.high)


@configclass
class LogUniformConfig:
    """A number between ``low`` and ``high``, as likely in each decade."""

    kind: Literal["log_uniform"] = "log_uniform"
    low: PositiveFloat
    high: PositiveFloat

    def __post_init__(self) -> None:
        _check_order(self.low, self.high)


@configclass
class IntegerConfig:
    """A whole number from ``low`` to ``high``, both included, in steps of ``step`` from low on."""

    kind: Literal["integer"] = "integer"
    low: int
    high: int
    step: PositiveInt = 1

    def __post_init__(self) -> None:
        _check_order(self.low, self.high)


def _check_order(low: float, high: float) -> None:
    if low >= high:
        raise ConfigError(f"low: got {low}, not less than high ({high}); give a range, or a choice")


Dimension = Annotated[
    ChoiceConfig | UniformConfig | LogUniformConfig | IntegerConfig, Field(discriminator="kind")
]


@configclass
class RandomConfig:
    """``trials`` draws from the space, without repetition. Raising it later adds draws to those
    that there were."""

    kind: Literal["random"] = "random"
    trials: PositiveInt = 8


@configclass
class GridConfig:
    """Every combination of choices and integers."""

    kind: Literal["grid"] = "grid"


@configclass
class AshaConfig:
    """Asynchronous successive halving (1810.05934): at ``grace_steps``, and at each multiple of
    ``reduction_factor`` of that, only the best 1/reduction_factor go on of those that came so far.
    """

    kind: Literal["asha"] = "asha"
    grace_steps: PositiveInt
    reduction_factor: Annotated[int, Field(ge=2, le=100)] = 3


@configclass
class NoStopConfig:
    """Every trial runs to its end."""

    kind: Literal["none"] = "none"


def _overlap(a: str, b: str) -> bool:
    """Whether one path is the other, or lies in it."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


@configclass
class SweepSpec:
    """A sweep; its folder is ``<output>/<name>``, and in it each trial's own.

    base: YAML of a training run. overrides: ``key.path=value``, of every run.
    space: places in the run's config, and what they may be.
    metric: of validations, by which trials are stopped and compared.
    seed: of the draws; that of the runs is the base's.
    max_concurrent: at most so many trials at once; null: as many as the cluster has room for. More
        than that never run, so that trials don't wait for each other's workers.
    max_failed: the sweep is ended when more trials than this have failed; null: it is not.
    """

    name: str
    output: str = "runs"
    base: str
    overrides: tuple[str, ...] = ()
    space: dict[str, Dimension]
    search: Annotated[RandomConfig | GridConfig, Field(discriminator="kind")] = RandomConfig()
    stop: Annotated[AshaConfig | NoStopConfig, Field(discriminator="kind")] = NoStopConfig()
    metric: str = "eval/valid/loss"
    lower_is_better: bool = True
    seed: NonNegativeInt = 0
    max_concurrent: PositiveInt | None = None
    max_failed: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name: got {self.name!r}; it names a folder: letters, digits, '.', '_', '-', "
                "at most 90 of them"
            )
        if not self.space:
            raise ConfigError("space: got nothing; name at least one place in the run's config")
        for path, dimension in self.space.items():
            for other in OURS:
                if _overlap(path, other):
                    raise ConfigError(f"space: {path}: a sweep gives each trial its {other} itself")
            for other in self.space:
                if other != path and _overlap(path, other):
                    raise ConfigError(
                        f"space: {path} and {other} set the same place; leave one out"
                    )
            endless = isinstance(dimension, (UniformConfig, LogUniformConfig))
            if isinstance(self.search, GridConfig) and endless:
                raise ConfigError(
                    f"search.kind: got grid, and {path} is any number of a range; give it "
                    "{kind: choice, values: [...]}, or search.kind=random"
                )
