"""Which rule converts which weight: the rules of the options at every place of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xtdist.config import CheckpointError
from xtdist.model.options.base import Option
from xtdist.model.options.places import find
from xtdist.model.options.resolver import holds, is_active
from xtdist.model.options.table import OPTIONS
from xtdist.model.options.weights import Context, Derived, Nest, Refused, Rule, Scope
from xtdist.model.pool import pool_stack_of

NORMS = (("norm", 0), ("branch_norm", 1), ("post_norm", 2))
"""Norms of a sublayer: our name and their number."""

INDEXED: tuple[tuple[Scope, str], ...] = (
    ("integrator", "layer_integrators"),
    ("skip", "skip_combines"),
)
"""Parts of a sublayer that they keep in lists beside it."""


@dataclass(frozen=True)
class Place:
    """A module that weights are named relative to: the prefix of its names there and here."""

    scopes: tuple[Scope, ...]
    theirs: str
    ours: str
    context: Context
    attention: str = ""


@dataclass(frozen=True)
class Step:
    """One rule at one place; names with the config's numbers filled in."""

    rule: Rule
    place: Place

    @property
    def ours(self) -> str:
        return self.place.ours + self._filled(self.rule.ours)

    @property
    def theirs(self) -> list[str]:
        return [self.place.theirs + self._filled(part.theirs) for part in self.rule.parts]

    def _filled(self, name: str) -> str:
        return re.sub(r"\{([a-z_.]{2,})\}", self._value, name)

    def _value(self, found: re.Match[str]) -> str:
        return str(find(self.place.context.config, found[1]))

    def numbered(self, names: Mapping[str, Any], *, ours: bool) -> Iterator[dict[str, str]]:
        """The numbers for which the first of the rule's names is among ``names``."""
        pattern = self.ours if ours else self.theirs[0]
        if "{j}" not in pattern:
            if pattern in names:
                yield {}
            return
        regex = re.compile(re.escape(pattern).replace(r"\{j\}", r"(\w+)"))
        for name in names:
            found = regex.fullmatch(name)
            if found:
                yield {"{j}": found[1]}


def steps(config: Any) -> Iterator[Step]:
    """At every place the rules of its scope, those of later options instead of earlier ones."""
    for place in _places(config):
        rules: list[Rule] = []
        described = place.context.config
        for option in OPTIONS:
            new = [w for w in option.weights if isinstance(w, Rule) and w.scope in place.scopes]
            new = [rule for rule in new if not rule.where or holds(rule.where, described)]
            if new and is_active(option, described, attention=place.attention):
                rules = [rule for rule in rules if not any(_overlap(rule, n) for n in new)] + new
        yield from (Step(rule, place) for rule in rules)


def _overlap(a: Rule, b: Rule) -> bool:
    theirs = {part.theirs for part in a.parts} & {part.theirs for part in b.parts}
    return bool(theirs) or a.ours == b.ours


def derived(config: Any) -> dict[str, Tensor]:
    """Their buffers that are no weights."""
    return {
        place.theirs + weight.theirs: weight.compute(place.context)
        for place in _places(config)
        for option in OPTIONS
        for weight in option.weights
        if isinstance(weight, Derived)
        and weight.scope in place.scopes
        and is_active(option, place.context.config, attention=place.attention)
    }


def check_convertible(config: Any) -> None:
    """Raises CheckpointError where x-transformers' model with the same keywords is another one."""
    for option in OPTIONS:
        if is_active(option, config):
            for part in option.weights:
                if isinstance(part, Refused) and _refuses(part, config):
                    raise CheckpointError(f"{option.name}: no weights to convert: {part.why}")


def _refuses(refused: Refused, config: Any) -> bool:
    if isinstance(refused.where, str):
        return holds(refused.where, config)
    return refused.where(config)


def _places(config: Any) -> Iterator[Place]:
    yield Place(("wrapper",), "", "", Context(config, config.attention))
    yield from _stack_places(config, "attn_layers.", "layers.")
    pool = pool_stack_of(config)
    if pool is not None and config.pool.depth > 1:
        yield from _stack_places(pool, "attn_pool.pooler.", "attention_pool.pooler.")
    elif pool is not None:
        yield _branch("attn_pool.pooler.", "attention_pool.pooler.", "c", pool)


def _stack_places(config: Any, there: str, here: str) -> Iterator[Place]:
    whole = Context(config, config.attention)
    yield Place(("layers",), there, here, whole)
    yield Place(("norm",), f"{there}final_norm.", f"{here}final_norm.", whole)
    for i, kind in enumerate(config.kinds):
        theirs, ours = f"{there}layers.{i}.", f"{here}sublayers.{i}."
        for name, number in NORMS:
            yield Place(("norm",), f"{theirs}0.{number}.", f"{ours}{name}.", whole)
        nests = _nests(config, kind)
        scale = [depth for depth, nest in enumerate(reversed(nests)) if nest.scale]
        if scale:
            yield Place(("scale",), f"{theirs}1.{'fn.' * scale[0]}", f"{ours}scale.", whole)
        yield _branch(f"{theirs}1.{'fn.' * len(nests)}", f"{ours}branch.", kind, config)
        yield Place(("residual",), f"{theirs}2.", f"{ours}residual.", whole)
        for scope, name in INDEXED:
            yield Place((scope,), f"{there}{name}.{i}.", f"{ours}{scope}.", whole)


def _branch(theirs: str, ours: str, kind: str, config: Any) -> Place:
    if kind == "f":
        return Place(("feedforward",), theirs, ours, Context(config, config.attention))
    if kind == "a":
        return Place(("attention",), theirs, ours, Context(config, config.attention), "attention")
    scopes: tuple[Scope, ...] = ("attention", "cross_attention")
    context = Context(config, config.cross_attention)
    return Place(scopes, theirs, ours, context, "cross_attention")


def _nests(config: Any, kind: str) -> list[Nest]:
    """The modules that wrap a branch of ``kind`` there, the innermost first."""
    found = [
        nest
        for option in OPTIONS
        for nest in option.weights
        if isinstance(nest, Nest) and kind in nest.kinds and is_active(option, config)
    ]
    return sorted(found, key=_order)


def _order(nest: Nest) -> int:
    return nest.order


def fill(name: str, numbers: Mapping[str, str]) -> str:
    for key, value in numbers.items():
        name = name.replace(key, value)
    return name


def whose(name: str, config: Any) -> str:
    """What option a weight that the config has no place for belongs to; empty if none is known."""
    best: Option | None = None
    longest, active = 0, False
    for option in OPTIONS:
        length = max((_matched(r, name) for r in option.weights if isinstance(r, Rule)), default=0)
        has = is_active(option, config)
        if length > longest or (length == longest > 0 and has):
            best, longest, active = option, length, has
    if best is None or active:
        return ""
    return f"a weight of the option {best.name}, which the config does not have"


def _matched(rule: Rule, name: str) -> int:
    """How much of ``name`` the rule accounts for."""
    patterns = [re.escape(part.theirs).replace(r"\{j\}", r"\d+") for part in rule.parts]
    ends = [re.search(rf"(?:^|\.)({pattern})$", name) for pattern in patterns]
    return max((len(found[1]) for found in ends if found), default=0)
