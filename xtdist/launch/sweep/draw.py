"""The trials of a sweep: a pure function of its config."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xtdist.config import ConfigError, UserError, derive_seed, load
from xtdist.launch.sweep.spec import (
    ChoiceConfig,
    Dimension,
    GridConfig,
    IntegerConfig,
    LogUniformConfig,
    RandomConfig,
    SweepSpec,
)
from xtdist.train.spec import RunSpec

Values = Mapping[str, Any]
TRIES = 50
"""Draws until one is new."""
MOST_CORNERS = 64
DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of the space and the run there. ``spec`` has the trial's own name and folder."""

    number: int
    values: Values
    spec: RunSpec

    @property
    def name(self) -> str:
        return trial_name(self.number)


def trial_name(number: int) -> str:
    """Of a trial's folder."""
    return f"trial-{number:03d}"


def trials_of(sweep: SweepSpec, folder: str) -> tuple[Trial, ...]:
    """Every trial, its config built; ``folder`` is the sweep's, absolute.

    Raises:
        ConfigError: one of them can't be, or a corner of the space: the ends of ranges and all
            choices. It names the values.
    """
    points = list(points_of(sweep))
    for values in itertools.chain(_corners(sweep), points):
        run_at(sweep, values)
    found = []
    for number, values in enumerate(points):
        spec = replace(run_at(sweep, values), name=trial_name(number), output=folder)
        if spec.checkpoint.url is not None:  # other sweeps have trials of the same names
            url = f"{spec.checkpoint.url.rstrip('/')}/{sweep.name}"
            spec = replace(spec, checkpoint=replace(spec.checkpoint, url=url))
        found.append(Trial(number=number, values=values, spec=spec))
    return tuple(found)


def run_at(sweep: SweepSpec, values: Values) -> RunSpec:
    """The base's run at a point of the space.

    Raises:
        ConfigError: it can't be; naming the point.
    """
    given = [f"{path}={json.dumps(value)}" for path, value in values.items()]
    try:
        return load(RunSpec, sweep.base, [*sweep.overrides, *given]).config
    except UserError as e:
        if not values:
            raise
        raise ConfigError(f"space, at {shown(values)}: {e}") from None


def shown(values: Values) -> str:
    """``optim.lr=0.001 model.depth=4``"""
    return " ".join(f"{path}={_text(value)}" for path, value in values.items())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def points_of(sweep: SweepSpec) -> Iterator[dict[str, Any]]:
    """The points of the space that are tried, in order, none of them twice."""
    if isinstance(sweep.search, GridConfig):
        yield from _product(sweep.space, {p: _every(d) for p, d in sweep.space.items()})
        return
    yield from _random(sweep, sweep.search)


def _random(sweep: SweepSpec, search: RandomConfig) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for number in range(search.trials):
        for attempt in range(TRIES):
            point = {
                path: _at(dimension, _share(sweep.seed, path, number, attempt))
                for path, dimension in sweep.space.items()
            }
            key = json.dumps(point, sort_keys=True)
            if key not in seen:
                seen.add(key)
                yield point
                break
        else:
            return  # the space is finite, and (nearly) all of it is tried


def _share(seed: int, *labels: int | str) -> float:
    """Uniform in [0, 1)."""
    return derive_seed(seed, "space", *labels) / 2**63


def _at(dimension: Dimension, share: float) -> Any:
    """The value of ``dimension`` so far from its beginning."""
    if isinstance(dimension, (ChoiceConfig, IntegerConfig)):
        every = _every(dimension)
        return every[int(share * len(every))]
    if isinstance(dimension, LogUniformConfig):
        low, high = math.log(dimension.low), math.log(dimension.high)
        return _within(dimension, math.exp(low + share * (high - low)))
    return _within(dimension, dimension.low + share * (dimension.high - dimension.low))


def _within(dimension: Any, value: float) -> float:
    """``value`` with few digits, and still in the range."""
    return min(max(float(f"{value:.{DIGITS}g}"), dimension.low), dimension.high)


def _every(dimension: Dimension) -> Sequence[Any]:
    if isinstance(dimension, ChoiceConfig):
        return dimension.values
    assert isinstance(dimension, IntegerConfig)
    return range(dimension.low, dimension.high + 1, dimension.step)


def _ends(dimension: Dimension) -> Sequence[Any]:
    if isinstance(dimension, ChoiceConfig):
        return dimension.values
    if isinstance(dimension, IntegerConfig):
        every = _every(dimension)
        return (every[0], every[-1])
    return (dimension.low, dimension.high)


def _corners(sweep: SweepSpec) -> Iterator[dict[str, Any]]:
    """All combinations of ends and choices; where those are many, each end and choice once with
    the first and once with the last of the others."""
    ends = {path: _ends(dimension) for path, dimension in sweep.space.items()}
    if math.prod(len(each) for each in ends.values()) <= MOST_CORNERS:
        yield from _product(sweep.space, ends)
        return
    for path, values in ends.items():
        for i, value in itertools.product((0, -1), values):
            yield {other: each[i] for other, each in ends.items()} | {path: value}


def _product(
    space: Mapping[str, Dimension], values: Mapping[str, Sequence[Any]]
) -> Iterator[dict[str, Any]]:
    for point in itertools.product(*(values[path] for path in space)):
        yield dict(zip(space, point, strict=True))
