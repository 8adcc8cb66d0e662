"""x-transformers' weights in our layout and back: the same logits from the same numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xtdist.config import CheckpointError
from xtdist.model.options.places import find
from xtdist.model.options.resolver import holds, is_active
from xtdist.model.options.table import OPTIONS
from xtdist.model.options.weights import Context, Derived, Nest, Rule, Scope
from xtdist.model.pool import pool_stack_of

NORMS = (("norm", 0), ("branch_norm", 1), ("post_norm", 2))
"""Norms of a sublayer: our name and their number."""

INDEXED: tuple[tuple[Scope, str], ...] = (
    ("integrator", "layer_integrators"),
    ("skip", "skip_combines"),
)
"""Parts of a sublayer that they keep in lists beside it."""


@dataclass(frozen=True)
class _Place:
    """A module that weights are named relative to: the prefix of its names there and here."""

    scopes: tuple[Scope, ...]
    theirs: str
    ours: str
    context: Context
    attention: str = ""


@dataclass(frozen=True)
class _Step:
    """One rule at one place; names with the config's numbers filled in."""

    rule: Rule
    place: _Place

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


def from_x_transformers(theirs: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The state dict of ``build_model(config)`` from that of an x-transformers TransformerWrapper
    with the same keywords. Tensors may be shared with ``theirs``.

    Query heads are reordered where they share keys: there, head i reads key/value head
    i mod kv_heads; here, i // (heads // kv_heads).

    Raises:
        CheckpointError: weights of an option that the config does not have, or weights missing.
    """
    ours: dict[str, Tensor] = {}
    left = dict(theirs)
    for name in _derived(config):
        left.pop(name, None)
    for step in _steps(config):
        for numbers in list(step.numbered(left, ours=False)):
            tensors = []
            for name, part in zip(step.theirs, step.rule.parts, strict=True):
                tensor = left.pop(_fill(name, numbers), None)
                if tensor is None:
                    raise CheckpointError(f"no weight {_fill(name, numbers)}: of another model")
                for transform in part.transforms:
                    tensor = transform.into(tensor, step.place.context)
                tensors.append(tensor)
            merged = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            ours[_fill(step.ours, numbers)] = merged
    if left:
        name = next(iter(left))
        raise CheckpointError(f"{name}: {_whose(name, config)}")
    return ours


def to_x_transformers(ours: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The state dict that an x-transformers TransformerWrapper with the same keywords loads
    (``strict=True``); the way back of ``from_x_transformers``.

    Raises:
        CheckpointError: a weight that x-transformers has no place for.
    """
    theirs = _derived(config)
    left = dict(ours)
    for step in _steps(config):
        for numbers in list(step.numbered(left, ours=True)):
            merged = left.pop(_fill(step.ours, numbers))
            for name, tensor in _split(step, merged):
                theirs[_fill(name, numbers)] = tensor
    if left:
        raise CheckpointError(f"{next(iter(left))}: x-transformers has no such weight")
    return theirs


def load_x_transformers(source: nn.Module | str | Path, config: Any) -> dict[str, Tensor]:
    """The state dict of ``build_model(config)`` from an x-transformers module, or from a file of
    its state dict: ``.safetensors``, or what ``torch.save`` wrote (read without running code).

    Raises:
        CheckpointError: a file that can't be read, or weights of another model.
    """
    if isinstance(source, nn.Module):
        return from_x_transformers(source.state_dict(), config)
    path = Path(source)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # every reader has errors of its own
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointError(f"{path}: can't be read as weights ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path}: holds no state dict; save model.state_dict()")
    return from_x_transformers(state, config)


def _split(step: _Step, merged: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The parts of one tensor of ours, as theirs."""
    context, parts = step.place.context, step.rule.parts
    rows = [part.rows(context) if part.rows else None for part in parts]
    rest = len(merged) - sum(n for n in rows if n is not None) if merged.ndim else 0
    sizes = [rest if n is None else n for n in rows]
    pieces = [merged] if len(parts) == 1 else list(merged.split(sizes))
    for name, part, piece in zip(step.theirs, parts, pieces, strict=True):
        tensor = piece
        for transform in reversed(part.transforms):
            tensor = transform.back(tensor, context)
        yield name, tensor.clone()


def _steps(config: Any) -> Iterator[_Step]:
    """At every place the rules of its scope, those of later options instead of earlier ones."""
    for place in _places(config):
        rules: list[Rule] = []
        described = place.context.config
        for option in OPTIONS:
            new = [w for w in option.weights if isinstance(w, Rule) and w.scope in place.scopes]
            new = [rule for rule in new if not rule.where or holds(rule.where, described)]
            if new and is_active(option, described, attention=place.attention):
                rules = [rule for rule in rules if not any(_overlap(rule, n) for n in new)] + new
        yield from (_Step(rule, place) for rule in rules)


def _overlap(a: Rule, b: Rule) -> bool:
    theirs = {part.theirs for part in a.parts} & {part.theirs for part in b.parts}
    return bool(theirs) or a.ours == b.ours


def _derived(config: Any) -> dict[str, Tensor]:
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


def _places(config: Any) -> Iterator[_Place]:
    yield _Place(("wrapper",), "", "", Context(config, config.attention))
    yield from _stack_places(config, "attn_layers.", "layers.")
    pool = pool_stack_of(config)
    if pool is not None and config.pool.depth > 1:
        yield from _stack_places(pool, "attn_pool.pooler.", "attention_pool.pooler.")
    elif pool is not None:
        yield _branch("attn_pool.pooler.", "attention_pool.pooler.", "c", pool)


def _stack_places(config: Any, there: str, here: str) -> Iterator[_Place]:
    whole = Context(config, config.attention)
    yield _Place(("layers",), there, here, whole)
    yield _Place(("norm",), f"{there}final_norm.", f"{here}final_norm.", whole)
    for i, kind in enumerate(config.kinds):
        theirs, ours = f"{there}layers.{i}.", f"{here}sublayers.{i}."
        for name, number in NORMS:
            yield _Place(("norm",), f"{theirs}0.{number}.", f"{ours}{name}.", whole)
        nests = _nests(config, kind)
        scale = [depth for depth, nest in enumerate(reversed(nests)) if nest.scale]
        if scale:
            yield _Place(("scale",), f"{theirs}1.{'fn.' * scale[0]}", f"{ours}scale.", whole)
        yield _branch(f"{theirs}1.{'fn.' * len(nests)}", f"{ours}branch.", kind, config)
        yield _Place(("residual",), f"{theirs}2.", f"{ours}residual.", whole)
        for scope, name in INDEXED:
            yield _Place((scope,), f"{there}{name}.{i}.", f"{ours}{scope}.", whole)


def _branch(theirs: str, ours: str, kind: str, config: Any) -> _Place:
    if kind == "f":
        return _Place(("feedforward",), theirs, ours, Context(config, config.attention))
    if kind == "a":
        return _Place(("attention",), theirs, ours, Context(config, config.attention), "attention")
    scopes: tuple[Scope, ...] = ("attention", "cross_attention")
    context = Context(config, config.cross_attention)
    return _Place(scopes, theirs, ours, context, "cross_attention")


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


def _fill(name: str, numbers: Mapping[str, str]) -> str:
    for key, value in numbers.items():
        name = name.replace(key, value)
    return name


def _whose(name: str, config: Any) -> str:
    """What a weight that the config has no place for belongs to."""
    best, longest = "", 0
    for option in OPTIONS:
        rules = [] if is_active(option, config) else option.weights
        for rule in rules:
            length = _matched(rule, name) if isinstance(rule, Rule) else 0
            if length > longest:
                best, longest = option.name, length
    if best:
        return f"a weight of the option {best}, which the config does not have"
    return "the weight of an x-transformers option that xtdist lacks or the config does not have"


def _matched(rule: Rule, name: str) -> int:
    """How much of ``name`` the rule accounts for."""
    patterns = [re.escape(part.theirs).replace(r"\{j\}", r"\d+") for part in rule.parts]
    ends = [re.search(rf"(?:^|\.)({pattern})$", name) for pattern in patterns]
    return max((len(found[1]) for found in ends if found), default=0)
