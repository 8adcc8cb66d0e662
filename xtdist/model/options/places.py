"""Places in a config: ``attention.dim_head`` in a tree of plain data or in the config itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints


def find(tree: Any, place: str, default: Any = None) -> Any:
    """What stands at ``place`` of a config or of its tree; ``default`` where there is no such
    place."""
    for key in place.split("."):
        if isinstance(tree, Mapping):
            tree = tree.get(key, default)
        else:
            tree = getattr(tree, key, default)
        if tree is default:
            return default
    return tree


def put(tree: dict[str, Any], place: str, value: Any) -> None:
    """Write ``value``; another kind starts its part afresh, an optional part keeps what it has."""
    *path, leaf = place.split(".")
    for key in path:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    if leaf == "kind" and tree.get("kind") != value:
        tree.clear()
    tree[leaf] = dict(value) if isinstance(value, Mapping) else value


def exists(cls: type, tree: Any, place: str) -> bool:
    """Whether a config of ``cls`` has ``place``, given the kinds that ``tree`` has chosen and the
    optional parts that it has on."""
    tp: Any = cls
    for key in place.split("."):
        hints = _fields(tp, tree)
        if hints is None or key not in hints:
            return False
        tp = hints[key]
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return True


def walk(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a tree with its place."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _fields(tp: Any, node: Any) -> dict[str, Any] | None:
    """The fields of the dataclass, or member of a tagged union, that ``node`` is one of; those that
    all members share where it does not say which."""
    members: list[Any] = [m for m in _members(tp) if dataclasses.is_dataclass(m)]
    kind = node.get("kind") if isinstance(node, Mapping) else None
    if kind is not None and len(members) > 1:
        members = [m for m in members if getattr(m, "kind", None) == kind]
    if not members or (node is None and type(None) in _members(tp)):
        return None
    shared = set.intersection(*(set(_hints(m)) for m in members))
    return {name: hint for name, hint in _hints(members[0]).items() if name in shared}


def _members(tp: Any) -> list[Any]:
    args = getattr(tp, "__args__", None)
    if dataclasses.is_dataclass(tp) or not args:
        return [tp]
    return [leaf for a in args for leaf in _members(a)]
