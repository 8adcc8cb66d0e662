"""What may stand where in a config: the types of a config class, by path."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

PRESET = "preset"
MEMBERS = ("constrained-", "tuple[", "list[")
NEAR = 0.65
"""How alike two names are of which one may be meant for the other."""


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """An annotation of a union: kinds that it doesn't have, and what to write instead."""

    of: Mapping[str, str]

    def __hash__(self) -> int:
        return hash(tuple(self.of.items()))


def nearest(word: Any, names: Iterable[str]) -> str:
    """The name that may be meant by ``word``; empty if none is."""
    near = difflib.get_close_matches(str(word), list(names), n=1, cutoff=NEAR)
    return near[0] if near else ""


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """The fields of a dataclass with their types."""
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def parts_of(tp: Any) -> list[Any]:
    """The config classes that a value of ``tp`` may be of; not those in a container."""
    return [t for t in _alternatives(tp) if dataclasses.is_dataclass(t)]


def _alternatives(tp: Any) -> list[Any]:
    """The members of unions and annotations."""
    args = getattr(tp, "__args__", None)
    origin = get_origin(tp)
    if not args or origin in (tuple, list, dict, Literal):
        return [tp]
    return [leaf for a in args for leaf in _alternatives(a)]


def kinds_of(tp: Any) -> dict[str, Any]:
    """The members of a tagged union by their kind."""
    return {m.kind: m for m in parts_of(tp) if isinstance(getattr(m, "kind", None), str)}


def is_optional(tp: Any) -> bool:
    """Whether null is allowed."""
    return type(None) in _alternatives(tp)


def type_at(cls: Any, path: tuple[str | int, ...]) -> Any:
    """The type of a place; None where there is none. Of a union, the first member that has it."""
    tp = cls
    for key in path:
        if isinstance(key, int):
            inner = [a for t in _alternatives(tp) for a in get_args(t) if a is not Ellipsis]
        elif (named := _named(tp)) is not None:
            inner = [named]
        else:
            inner = [h[key] for m in _members(tp) if key in (h := hints_of(m))]
        if not inner:
            return None
        tp = inner[0]
    return tp


def instead(cls: Any, path: tuple[str | int, ...], kind: str) -> str:
    """Where a kind that is not one of the place's is; empty if nowhere near."""
    for note in _notes(type_at(cls, path)):
        if kind in note.of:
            return note.of[kind]
    for owner in parts_of(type_at(cls, path[:-1])):
        for name, tp in hints_of(owner).items():
            if kind in kinds_of(tp):
                return f"{kind} is one of {name}: {{kind: {kind}}}"
    return ""


def _notes(tp: Any) -> list[Elsewhere]:
    own = [m for m in getattr(tp, "__metadata__", ()) if isinstance(m, Elsewhere)]
    args = getattr(tp, "__args__", None) or ()
    return own + [note for a in args for note in _notes(a)]


def key_path(cls: Any, loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """pydantic's location without the tags of tagged unions: the path as written in YAML."""
    return walk(cls, loc)[0]


def walk(
    cls: Any, loc: tuple[str | int, ...]
) -> tuple[tuple[str | int, ...], list[str], tuple[str, dict[str, Any]] | None]:
    """The path of pydantic's ``loc``, the keys that may stand below it, and, if it ends in the tag
    of a union, that kind and the fields of the whole union."""
    path: list[str | int] = []
    fields = field_types(cls)
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
        fields = field_types(inner)
    return tuple(path), _names(fields), union


def allowed_keys(cls: Any, loc: tuple[str | int, ...]) -> list[str]:
    """Keys that may stand at ``loc`` (a path as written in YAML); of every kind for a union."""
    fields = field_types(cls)
    for part in loc:
        if isinstance(part, int):
            continue
        fields = field_types(fields.get(part)) if fields is not None else None
    return _names(fields)


def takes_any_key(cls: Any, path: tuple[str, ...]) -> bool:
    """Whether names at ``path`` are the user's own."""
    fields = field_types(cls)
    for part in path:
        fields = field_types(fields.get(part)) if fields is not None else None
    return isinstance(fields, _AnyName)


def _names(fields: dict[str, Any] | None) -> list[str]:
    return sorted(k for k in fields or {} if not k.startswith("kind="))


def field_types(tp: Any) -> dict[str, Any] | None:
    """Fields of a dataclass type; of a union of dataclasses, all of them, plus ``kind=<tag>``
    entries that hold each member's own fields."""
    if (named := _named(tp)) is not None:
        return _AnyName(named)
    members = _members(tp)
    if not members:
        return None
    fields: dict[str, Any] = {}
    for member in members:
        fields.update(hints_of(member))
        tag = getattr(member, "kind", None)
        if isinstance(tag, str):
            fields[f"kind={tag}"] = member
    return fields


class _AnyName(dict[str, Any]):
    """The fields of a mapping: any name, all of one type."""

    def __init__(self, tp: Any) -> None:
        super().__init__()
        self.tp = tp

    def __contains__(self, key: object) -> bool:
        return True

    def get(self, key: str, default: Any = None) -> Any:
        return default if key.startswith("kind=") else self.tp


def _named(tp: Any) -> Any:
    """The type of the values where ``tp`` is a mapping from names; else None."""
    found = [get_args(t)[1] for t in _alternatives(tp) if get_origin(t) is dict and get_args(t)]
    return found[0] if found else None


def _by_kind(fields: dict[str, Any], tag: str) -> dict[str, Any] | None:
    member = fields.get(f"kind={tag}")
    return field_types(member) if member is not None else None


def _members(tp: Any) -> list[Any]:
    """The config classes in a type, also those in its containers."""
    args = getattr(tp, "__args__", None)
    if dataclasses.is_dataclass(tp) or not args:
        return [tp] if dataclasses.is_dataclass(tp) else []
    return [leaf for a in args for leaf in _members(a)]
