"""What an option of the model is, declared once.

From these declarations come the table of x-transformers' keywords (``model/compat.py``), the
conversion of weights (``model/compat_weights.py``), the resolver (``resolver.py``), the matrix
(``OPTIONS.md``) and the test grid (``tests/model``). To add an option:

1. Append an ``Option`` to ``OPTIONS`` of the file that its part belongs to: ``layers``, ``norm``,
   ``residual``, ``branch``, ``attention``, ``scores``, ``values``, ``contextual``, ``position``,
   ``feedforward``, ``wrapper``, ``head``.
2. ``active`` is a place in the config that is on (neither null, false nor 0) or ``place=value``,
   several joined by ``|``; where that is not enough, a function of the config. A place in
   ``attention`` stands for the same place in ``cross_attention`` too.
3. ``rows``: one ``Row`` for each keyword. ``attn_…`` rows exist as ``cross_attn_…`` by themselves.

   - a plain value:        ``Row("ff_dropout", "feedforward.dropout", 0.0)``
   - a kind:               ``Row("use_rmsnorm", "norm.kind", False, {True: "rmsnorm"})``
   - an optional part:     ``Row("attn_x", "attention.x", False, {False: None, True: {}})``
   - a value inside of it: ``Row("attn_x_size", "attention.x.size", 4, needs="attn_x")``
     (also where the part is a bare number: give both rows the same place)
   - a small function:     ``into=`` (value, all keywords) and ``back=`` (placed value, the tree);
     either may return ``SKIP``: place nothing, the default
   - one keyword, two places: two rows
   - what x-transformers can't choose: ``Fixed("norm.eps", 1e-12, needs="use_rmsnorm")``

   A row whose place the chosen kind does not have is left out, or an error if it was given.
4. ``samples``: settings that turn the option on, and values that can hide errors at their default.
5. ``weights``: rules of ``weights.py``, where the option has parameters of its own.
6. ``python -m xtdist.model.options > xtdist/model/OPTIONS.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from xtdist.model.options.weights import Derived, Nest, Refused, Rule

REQUIRED = object()
INHERIT = object()
"""The default of a ``cross_attn_…`` keyword: what ``attn_…`` says."""
SKIP = object()
"""What ``into`` returns to place nothing."""

Backend = Literal["sdpa", "flex", "eager"]
ALL: frozenset[Backend] = frozenset({"sdpa", "flex", "eager"})
SCORES: frozenset[Backend] = frozenset({"flex", "eager"})
"""Backends that can change single scores."""
EAGER: frozenset[Backend] = frozenset({"eager"})


@dataclass(frozen=True)
class Row:
    """``keyword`` lies at ``place``; ``values`` translates its values where they are not the same.

    A place may get null, a mapping (an optional part that is on) or a kind. A value that
    ``values`` lacks places nothing. ``needs`` is another keyword that must be on for this one to
    mean anything; several joined by ``|``: any of them. ``self_only``: cross attention has no such
    thing, so there is no ``cross_attn_…`` keyword.
    """

    keyword: str
    place: str
    default: Any
    values: Mapping[Any, Any] | None = None
    needs: str = ""
    into: Callable[[Any, Mapping[str, Any]], Any] | None = None
    back: Callable[[Any, Mapping[str, Any]], Any] | None = None
    self_only: bool = False

    @property
    def chooses(self) -> bool:
        """Whether places of other rows depend on it."""
        whole = self.values is not None and any(
            v is None or isinstance(v, Mapping) for v in self.values.values()
        )
        return whole or self.place.rsplit(".", 1)[-1] == "kind"


def elsewhere(placed: Any, tree: Mapping[str, Any]) -> Any:
    """``back`` of a keyword whose place another keyword says on the way back."""
    return SKIP


@dataclass(frozen=True)
class Fixed:
    """What x-transformers has no keyword for: ``value``, or a function of all keywords."""

    place: str
    value: Any
    needs: str = ""

    @property
    def chooses(self) -> bool:
        """As ``Row.chooses``."""
        return self.place.rsplit(".", 1)[-1] == "kind"


AnyRow = Row | Fixed


@dataclass(frozen=True)
class Sample:
    """Settings that turn an option on: keywords of x-transformers, or ``config`` = {place: value}
    for what it lacks. ``inputs`` names what a forward pass must be given: context, condition.
    ``broken``: why x-transformers can't run it."""

    layers: Mapping[str, Any] = field(default_factory=dict)
    wrapper: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    broken: str = ""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option.

    about: one line. paper: an arXiv id or "". tier: of the reference, 1 to 3.
    rows, wrapper: keywords of the layers, and of ``TransformerWrapper``.
    backends: those that can honour it. causal: where it is right.
    uncacheable: why it can't be decoded with a cache, or "". unpackable: why documents can't be
    kept apart in one sequence, or "". fixed_order: why a forward pass can't run the sublayers in
    another order, or "".
    acts_in: kinds of sublayers that it acts in (a, c, f): a stack without any of them refuses it.
    "" = all, and for a place in ``attention`` those attentions.
    needed: {place: condition as in ``active``}: places that have no effect unless it holds. It is
    what ``needs`` of a row is for keywords, and holds for a config however it was written.
    excludes: {other option: why, and the way out}; it holds both ways.
    differs: how it differs from x-transformers, or "".
    """

    name: str
    about: str
    active: str | Callable[[Any], bool]
    paper: str = ""
    tier: int = 1
    rows: tuple[AnyRow, ...] = ()
    wrapper: tuple[AnyRow, ...] = ()
    samples: tuple[Sample, ...] = ()
    weights: tuple[Rule | Derived | Nest | Refused, ...] = ()
    backends: frozenset[Backend] = ALL
    causal: Literal["any", "causal only", "bidirectional only"] = "any"
    uncacheable: str = ""
    unpackable: str = ""
    fixed_order: str = ""
    acts_in: str = ""
    needed: Mapping[str, str] = field(default_factory=dict)
    excludes: Mapping[str, str] = field(default_factory=dict)
    differs: str = ""
