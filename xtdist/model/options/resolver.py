"""Which options work together, and on which backends of attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xtdist.config import ConfigError
from xtdist.model.options.base import Backend, Option, Row
from xtdist.model.options.places import find
from xtdist.model.options.table import OPTIONS
from xtdist.model.options.width import check_mup

ATTENTIONS = ("attention", "cross_attention")
KINDS = {"attention": "a", "cross_attention": "c"}
CALLED = {"a": "self attention", "c": "cross attention", "f": "feed-forward"}
FASTEST_FIRST: tuple[Backend, ...] = ("sdpa", "eager", "flex")


@dataclass(frozen=True)
class Resolved:
    """What the options of a model leave to choose.

    backends: for ``attention`` and, where there is one, ``cross_attention``: the backends that
    honour every option, fastest first. notes: what was decided and why, one sentence each.
    """

    backends: Mapping[str, tuple[Backend, ...]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _AsCross:
    """A config whose ``attention`` is its cross attention."""

    config: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.config, "cross_attention" if name == "attention" else name)


def is_active(option: Option, config: Any, *, attention: str = "") -> bool:
    """Whether a config of layers or of a model has ``option``.

    attention: ask about this attention alone (``attention`` or ``cross_attention``); without it,
    about any.
    """
    if not attention:
        return any(is_active(option, config, attention=name) for name in attentions(config))
    view = config if attention == "attention" else _AsCross(config)
    if callable(option.active):
        return bool(option.active(view))
    return holds(option.active, view)


def attentions(config: Any) -> list[str]:
    """The attentions that a config has: its own and, with one, cross attention."""
    return [name for name in ATTENTIONS if find(config, name) is not None]


def active_options(config: Any, *, attention: str = "") -> Iterator[Option]:
    """The options that a config has."""
    return (o for o in OPTIONS if is_active(o, config, attention=attention))


def resolve(config: Any) -> Resolved:
    """Check that all options of ``config`` work together.

    Raises:
        ConfigError: two options that don't, by name and with the way out; an option that is wrong
            for a causal (or bidirectional) stack, or of sublayers that the stack lacks; a value
            that has no effect; a backend that can't honour an option.
    """
    active = list(active_options(config))
    names = {option.name for option in active}
    for option in active:
        for other, why in option.excludes.items():
            if other in names:
                both = [option, next(o for o in active if o.name == other)]
                places = "; ".join(f"{o.name}: {written(o, config)}" for o in both)
                raise ConfigError(
                    f"{option.name} and {other} can't be combined: {why} ({places})",
                    place=place_of(option, config),
                )
        _check_causal(option, config)
        _check_acts(option, config)
    for option in OPTIONS:
        _check_needed(option, config)
    check_mup(config, active)
    return Resolved({name: _backends(config, name) for name in attentions(config)})


def cache_refused(config: Any) -> str:
    """Why a model can't be decoded with a cache; empty if it can."""
    reasons = [f"{o.name}: {o.uncacheable}" for o in active_options(config) if o.uncacheable]
    return "; ".join(reasons)


def documents_refused(config: Any) -> str:
    """Why documents in one sequence can't be kept apart; empty if they can."""
    reasons = [f"{o.name}: {o.unpackable}" for o in active_options(config) if o.unpackable]
    return "; ".join(reasons)


def order_refused(config: Any) -> str:
    """Why a forward pass can't run the sublayers in another order; empty if it can."""
    reasons = [f"{o.name}: {o.fixed_order}" for o in active_options(config) if o.fixed_order]
    return "; ".join(reasons)


def _check_acts(option: Option, config: Any) -> None:
    """Some sublayer has what ``option`` is about."""
    there = set(config.kinds)
    wanted = set(option.acts_in)
    if not wanted and callable(option.active):
        return
    if not wanted:
        if not str(option.active).startswith("attention."):
            return
        wanted = {
            KINDS[name] for name in attentions(config) if is_active(option, config, attention=name)
        }
    if wanted & there:
        return
    lacks = " or ".join(CALLED[kind] for kind in sorted(wanted))
    off = "cross_attend=True" if wanted == {"c"} else "another order (order, custom_layers)"
    raise ConfigError(
        f"{option.name} ({written(option, config)}) has no effect: the stack has no {lacks}; "
        f"leave the option out, or give {off}",
        place=place_of(option, config),
    )


def _check_needed(option: Option, config: Any) -> None:
    """No value stands where it has no effect."""
    for place, condition in option.needed.items():
        for name in attentions(config) if place.startswith("attention.") else ("attention",):
            view = config if name == "attention" else _AsCross(config)
            parent, _, leaf = place.rpartition(".")
            owner = find(view, parent) if parent else config
            value = getattr(owner, leaf)
            if value == getattr(type(owner), leaf) or holds(condition, view):
                continue
            here = place if name == "attention" else f"cross_{place}"
            wanted = " or ".join(condition.split("|"))
            if name != "attention":
                wanted = wanted.replace("attention.", "cross_attention.")
            raise ConfigError(
                f"{here}: got {value}; it has no effect without {wanted}; set that too, or leave "
                "it out"
            )


def _check_causal(option: Option, config: Any) -> None:
    if config.causal and option.causal == "bidirectional only":
        raise ConfigError(
            f"{option.name} in a causal stack (Decoder, causal=true) would show tokens their "
            f"future; leave out {written(option, config)}, or use an Encoder (causal=false)",
            place=place_of(option, config),
        )
    if not config.causal and option.causal == "causal only":
        raise ConfigError(
            f"{option.name} is defined for a causal stack only, and this is an Encoder "
            f"(causal=false); leave out {written(option, config)}, or use a Decoder (causal=true)",
            place=place_of(option, config),
        )


def _backends(config: Any, attention: str) -> tuple[Backend, ...]:
    """The backends that honour every option of one attention."""
    wanted = getattr(config, attention).backend
    left = FASTEST_FIRST
    for option in active_options(config, attention=attention):
        if wanted != "auto" and wanted not in option.backends:
            able = " or ".join(b for b in FASTEST_FIRST if b in option.backends)
            given = f"{attention}.backend={wanted}"
            given += " (attn_flash=True)" if wanted == "sdpa" else ""
            drop = "attn_flash=True" if wanted == "sdpa" else "the backend"
            raise ConfigError(
                f"{given} can't honour {option.name}, which needs {able}; drop {drop} "
                f"(backend=auto chooses), or leave out {written(option, config)}",
                place=f"{attention}.backend",
            )
        left = tuple(b for b in left if b in option.backends)
        if not left:
            raise ConfigError(f"no backend of attention honours {option.name} with the others")
    return left if wanted == "auto" else (wanted,)


def place_of(option: Option, config: Any) -> str:
    """Where an option that ``config`` has stands in it."""
    own = is_active(option, config, attention="attention")
    view = config if own else _AsCross(config)
    conditions = option.active.split("|") if isinstance(option.active, str) else []
    places = [c.partition("=")[0] for c in conditions if holds(c, view)]
    places += [row.place for row in _rows(option)]
    place = places[0] if places else ""
    return f"cross_{place}" if not own and place.startswith("attention.") else place


def written(option: Option, config: Any) -> str:
    """An option that ``config`` has as one writes it: the place with its value, and the keyword."""
    place = place_of(option, config)
    value = find(config, place) if place else None
    kind = getattr(value, "kind", "")
    if dataclasses.is_dataclass(value):
        value = f"{{kind: {kind}}}" if kind else "{…}"
    elif isinstance(value, bool):
        value = str(value).lower()
    keywords = [row.keyword for row in _rows(option)][:1]
    return ", keyword ".join([f"{place}={value}", *keywords])


def _rows(option: Option) -> list[Row]:
    return [row for row in (*option.rows, *option.wrapper) if isinstance(row, Row)]


def holds(condition: str, config: Any) -> bool:
    """Whether a condition like ``position.heads`` or ``norm.kind=rmsnorm`` is true of a config."""
    return any(_is(part, config) for part in condition.split("|"))


def _is(condition: str, config: Any) -> bool:
    place, equals, value = condition.partition("=")
    found = find(config, place)
    if equals:
        return str(found) == value
    return dataclasses.is_dataclass(found) or bool(found)
