"""From a config to the keywords of x-transformers whose model computes the same."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from xtdist.config import ConfigError, to_mapping
from xtdist.model.compat import layers_config, model_config
from xtdist.model.config import LayersConfig, ModelConfig
from xtdist.model.options.base import INHERIT, SKIP, AnyRow, Fixed, Row
from xtdist.model.options.places import find, walk
from xtdist.model.options.table import layers_rows, wrapper_rows
from xtdist.nn.feedforward import GLUConfig, MLPConfig
from xtdist.nn.feedforward.config import inner_dim
from xtdist.nn.position.config import RotaryConfig

Config = TypeVar("Config", bound=LayersConfig)

THETA = 10000.0
"""Their base of rotary positions."""
CLOSE = 1e-5
"""An ``eps`` may differ by this: their RMSNorm has 1e-12, which no keyword changes."""
UNSEEN = re.compile(
    r"(?:cross_)?attention\.backend|recompute(\..*)?|branch_init|position\.xpos_centre"
    r"|(?:embedding|head)\.given"
)
"""Places that change nothing of what is computed from the same weights, and parts given as objects,
which their wrapper takes too (``token_emb``, ``to_logits``)."""
ABSOLUTE = ("learned", "sinusoidal", "none")
"""Positions that a stack by itself knows nothing of."""


def keywords_of(config: LayersConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords of x-transformers' layers (``Decoder`` where ``config.causal``, else
    ``Encoder``; ``PrefixDecoder`` where ``config.prefix``) and of its ``TransformerWrapper`` that
    compute what a model of ``config`` computes; of layers alone, no keywords of the wrapper.
    Keywords at their default are left out.

    What only makes the computation fast is not said, and an ``eps`` up to 1e-5 from theirs counts
    as theirs. Where theirs has biases that a model of ``config`` lacks, they have to be zero, as
    ``to_x_transformers`` writes them.

    Raises:
        ConfigError: x-transformers can't compute this; with every place that it has no keyword for.
    """
    plain = their_form(config)
    tree = to_mapping(plain)
    layers = _keywords(layers_rows(), tree)
    again: LayersConfig = layers_config(
        layers, causal=plain.causal, name="Layers", prefix=plain.prefix
    )
    wrapper: dict[str, Any] = {}
    if isinstance(plain, ModelConfig):
        wrapper = _keywords(wrapper_rows(), tree)
        again = model_config(again, wrapper)
    odd = list(_differences(plain, again))
    if odd:
        raise ConfigError(f"x-transformers has no keyword for {', '.join(odd)}")
    return layers, wrapper


def their_form(config: Config) -> Config:
    """The model of x-transformers' kind that computes the same as that of ``config``, as far as
    there is one: feed-forwards with all the biases that go together there and without rounding
    their width, rotary positions by their one base."""
    changes: dict[str, Any] = {}
    ff, position = config.feedforward, config.position
    if isinstance(ff, (MLPConfig, GLUConfig)):
        has_bias = ff.bias_out or (isinstance(ff, MLPConfig) and ff.bias_in)
        gated = isinstance(ff, GLUConfig)
        changes["feedforward"] = dataclasses.replace(
            ff,
            bias_in=gated or has_bias,
            bias_out=has_bias,
            multiple_of=1,
            mult=ff.mult if ff.multiple_of == 1 else _factor(inner_dim(ff, config.dim), config.dim),
        )
    if isinstance(position, RotaryConfig):
        changes["position"] = _their_rotary(position, config.rotary_dim)
    return dataclasses.replace(config, **changes)


def _factor(inner: int, dim: int) -> float:
    """The factor of ``dim`` that is ``inner``, rounded down."""
    factor = inner / dim
    return factor if int(dim * factor) == inner else math.nextafter(factor, math.inf)


def _their_rotary(position: RotaryConfig, dim: int) -> RotaryConfig:
    """With the base changed by ``theta_rescale`` alone, which takes its dim/(dim − 2)-th power."""
    if position.theta == THETA or dim <= 2 or position.scaling is not None:
        return dataclasses.replace(position, dim=dim)
    factor = position.theta_rescale * (position.theta / THETA) ** ((dim - 2) / dim)
    return dataclasses.replace(position, dim=dim, theta=THETA, theta_rescale=factor)


def _differences(ours: LayersConfig, theirs: LayersConfig) -> Iterator[str]:
    """Places where two configs describe models that compute something else."""
    mine, others = to_mapping(ours), to_mapping(theirs)
    if not isinstance(ours, ModelConfig) and ours.position.kind in ABSOLUTE:
        mine["position"] = others["position"]
    seen: set[str] = set()
    for place, _ in [*walk(mine), *walk(others)]:
        shown = _deciding(place, mine, others)
        got, want = find(mine, shown), find(others, shown)
        if shown in seen or UNSEEN.fullmatch(shown) or got == want or _close(shown, got, want):
            continue
        seen.add(shown)
        yield f"{shown}={got!r} (it computes with {want!r})"


def _deciding(place: str, mine: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """The place itself, or the part that it is in where the two have different parts there."""
    keys = place.split(".")
    for end in range(1, len(keys)):
        part = ".".join(keys[:end])
        a, b = find(mine, part), find(others, part)
        if not isinstance(a, Mapping) or not isinstance(b, Mapping):
            return part
        if a.get("kind") != b.get("kind"):
            return f"{part}.kind"
    return place


def _close(place: str, got: Any, want: Any) -> bool:
    if not isinstance(got, float) or not isinstance(want, float):
        return False
    slack = CLOSE if place.endswith(".eps") else 0.0
    return math.isclose(got, want, rel_tol=1e-9, abs_tol=slack * (1 + 1e-9))


def _keywords(rows: Sequence[AnyRow], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that say what stands in ``tree``, where they differ from the defaults."""
    all_found: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for row in rows:
        if isinstance(row, Fixed):
            continue
        default = row.default
        if default is INHERIT:
            default = all_found.get(row.keyword.removeprefix("cross_"))
        value = _keyword(row, tree, default)
        if row.needs and not any(all_found.get(k) for k in row.needs.split("|")):
            value = default
        if value == default and row.keyword in all_found:
            continue  # another row of this keyword has said it
        if isinstance(value, dict):
            value = {**all_found.get(row.keyword, {}), **value}
        all_found[row.keyword] = value
        if value != default:
            found[row.keyword] = value
    return found


def _keyword(row: Row, tree: Mapping[str, Any], default: Any) -> Any:
    """The value of one keyword; ``default`` where the tree lacks its place."""
    placed = find(tree, row.place, SKIP)
    if placed is SKIP:
        return default
    if row.back is not None:
        value = row.back(placed, tree)
        return default if value is SKIP else value
    if row.values is None:
        return tuple(placed) if isinstance(placed, list) else placed
    for value, place in row.values.items():
        on = isinstance(place, Mapping) and placed is not None
        if on and all(find(placed, k) == v for k, v in place.items()):
            return value
        if not on and placed == place:
            return value
    return default
