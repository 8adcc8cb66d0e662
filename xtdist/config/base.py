"""Typed configs: frozen, keyword-only dataclasses that reject unknown keys.

Example:
    >>> @configclass
    ... class Optim:
    ...     lr: PositiveFloat = 1e-3
    >>> from_mapping(Optim, {"lr": 0.1}).lr
    0.1
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, dataclass_transform, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from xtdist.config.errors import ConfigError

T = TypeVar("T")
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}  # building one takes milliseconds

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def configclass(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen keyword-only dataclass, checked strictly when read from outside."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def _adapter(cls: Any) -> TypeAdapter[Any]:
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def from_mapping(cls: type[T], mapping: Mapping[str, Any], *, where: str = "") -> T:
    """Build ``cls`` from plain data (what YAML or JSON gives).

    Raises:
        ConfigError: naming every wrong key, the value found there and what is allowed.
    """
    try:
        text = json.dumps(mapping)
    except (TypeError, ValueError, RecursionError) as e:
        raise ConfigError(f"{where or cls.__name__}: not plain data ({e})") from None
    try:
        config: T = _adapter(cls).validate_json(text)
    except ValidationError as e:
        problems = [describe(cls, err, where) for err in e.errors(include_url=False)]
        raise ConfigError("\n".join(_joined(problems))) from None
    return config


def _joined(problems: list[str]) -> list[str]:
    """What each member of a union wants of the same value, as one sentence."""
    found: dict[str, list[str]] = {}
    for problem in problems:
        given, _, wanted = problem.partition(WANTED)
        found.setdefault(given, [])
        if wanted and wanted not in found[given]:
            found[given].append(wanted)
    return [given + (WANTED + ", or ".join(w) if w else "") for given, w in found.items()]


WANTED = "; it should be "


def to_mapping(config: Any) -> dict[str, Any]:
    """The config as plain JSON-able data; ``from_mapping(type(c), to_mapping(c)) == c``."""
    return json.loads(_adapter(type(config)).dump_json(config))


def digest(config: Any) -> str:
    """sha256 of the config's canonical JSON: equal configs have equal digests."""
    text = json.dumps(to_mapping(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def key_path(cls: Any, loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """pydantic's location without the tags of tagged unions: the path as written in YAML."""
    return _walk(cls, loc)[0]


MEMBERS = ("constrained-", "tuple[", "list[")


def _walk(
    cls: Any, loc: tuple[str | int, ...]
) -> tuple[tuple[str | int, ...], list[str], tuple[str, dict[str, Any]] | None]:
    """The path of pydantic's ``loc``, the keys that may stand below it, and, if it ends in the tag
    of a union, that kind and the fields of the whole union."""
    path: list[str | int] = []
    fields = _field_types(cls)
    union = None
    for part in loc:
        if isinstance(part, int):
            path.append(part)
            continue
        if fields is None and part.startswith(MEMBERS):
            continue  # pydantic's name of a member of a union
        if isinstance(part, str) and fields is not None and part not in fields:
            tagged = _by_kind(fields, part)
            if tagged is not None:
                union, fields = (part, fields), tagged
                continue
        union = None
        path.append(part)
        inner = fields.get(part) if isinstance(part, str) and fields is not None else None
        fields = _field_types(inner)
    return tuple(path), _names(fields), union


def describe(cls: Any, err: ErrorDetails, where: str = "") -> str:
    """One sentence for one pydantic error: where, what was given, what is allowed, how to fix."""
    loc = key_path(cls, err["loc"])
    path = ".".join(str(p) for p in loc) or "(top level)"
    prefix = f"{where}: " if where else ""
    given = err.get("input")
    if err["type"] == "unexpected_keyword_argument":
        return f"{prefix}{path}: unknown key; {_unknown_hint(cls, err['loc'])}"
    if err["type"] in ("missing", "missing_argument"):
        return f"{prefix}{path}: required key is missing"
    if err["type"] == "value_error":
        return f"{prefix}{path}: {err['ctx']['error']}" if loc else f"{prefix}{err['ctx']['error']}"
    message = err["msg"][0].lower() + err["msg"][1:]
    shown = (
        json.dumps(given) if not isinstance(given, float) or math.isfinite(given) else str(given)
    )
    return f"{prefix}{path}: got {shown[:80]}; {message.replace('input should', 'it should')}"


def allowed_keys(cls: Any, loc: tuple[str | int, ...]) -> list[str]:
    """Keys that may stand at ``loc`` (a path as written in YAML); of every kind for a union."""
    fields = _field_types(cls)
    for part in loc:
        if isinstance(part, int):
            continue
        fields = _field_types(fields.get(part)) if fields is not None else None
    return _names(fields)


def _unknown_hint(cls: Any, loc: tuple[str | int, ...]) -> str:
    """What to write instead of the key that ``loc`` ends in; of the chosen kind for a union."""
    key = str(loc[-1])
    _, allowed, union = _walk(cls, loc[:-1])
    if union and key in union[1]:
        members = {k.removeprefix("kind="): m for k, m in union[1].items() if k.startswith("kind=")}
        having = [repr(k) for k, m in members.items() if key in (_field_types(m) or {})]
        have = "has" if len(having) == 1 else "have"
        return f"not a key of kind {union[0]!r}; kind {', '.join(having)} {have} it"
    near = difflib.get_close_matches(key, allowed, n=1)
    return f"did you mean {near[0]!r}?" if near else f"allowed here: {', '.join(allowed)}"


def _names(fields: dict[str, Any] | None) -> list[str]:
    return sorted(k for k in fields or {} if not k.startswith("kind="))


def _field_types(tp: Any) -> dict[str, Any] | None:
    """Fields of a dataclass type; of a union of dataclasses, all of them, plus ``kind=<tag>``
    entries that hold each member's own fields."""
    members = [m for m in _flatten(tp) if dataclasses.is_dataclass(m)]
    if not members:
        return None
    fields: dict[str, Any] = {}
    for member in members:
        hints = get_type_hints(member, include_extras=True)
        own = {f.name: hints[f.name] for f in dataclasses.fields(member)}
        fields.update(own)
        tag = getattr(member, "kind", None)
        if isinstance(tag, str):
            fields[f"kind={tag}"] = member
    return fields


def _by_kind(fields: dict[str, Any], tag: str) -> dict[str, Any] | None:
    member = fields.get(f"kind={tag}")
    return _field_types(member) if member is not None else None


def _flatten(tp: Any) -> list[Any]:
    """The leaf types of unions, annotations and containers."""
    args = getattr(tp, "__args__", None)
    if dataclasses.is_dataclass(tp) or not args:
        return [tp]
    return [leaf for a in args for leaf in _flatten(a)]
