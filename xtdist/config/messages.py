"""What a wrong value says: one sentence, with the place as it was written."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from xtdist.config.fields import (
    PRESET,
    allowed_keys,
    hints_of,
    instead,
    is_optional,
    key_path,
    kinds_of,
    nearest,
    parts_of,
    type_at,
    walk,
)

Path = tuple[str | int, ...]
WANTED = "; it should be "
PART_EXPECTED = ("dataclass_type", "dataclass_exact_type", "model_attributes_type", "dict_type")
_LEADING = re.compile(r"([a-z_][a-z_0-9]*(?:\.[a-z_0-9]+)*): ")


def joined(problems: list[str]) -> str:
    """One line for each value; what each member of a union wants of it, as one sentence."""
    found: dict[str, list[str]] = {}
    for problem in problems:
        given, _, wanted = problem.partition(WANTED)
        found.setdefault(given, [])
        if wanted and wanted not in found[given]:
            found[given].append(wanted)
    lines = [given + (WANTED + ", or ".join(w) if w else "") for given, w in found.items()]
    return "\n".join(lines)


def describe(cls: Any, err: ErrorDetails, where: str = "") -> str:
    """One sentence for one pydantic error: where, what was given, what is allowed, how to fix."""
    path, given = key_path(cls, err["loc"]), err.get("input")
    place, rest = _sentence(cls, path, err, given)
    if not place and err["type"] != "value_error":
        place = "(top level)"
    return ": ".join(part for part in (where, place, rest) if part)


def _sentence(cls: Any, path: Path, err: ErrorDetails, given: Any) -> tuple[str, str]:
    """The place, and what is said of it."""
    here, kind = dotted(path), err["type"]
    if kind == "unexpected_keyword_argument":
        return here, f"unknown key; {_of_unknown(cls, err['loc'])}"
    if kind in ("missing", "missing_argument"):
        return here, "required key is missing"
    if kind == "value_error":
        return _of_check(cls, path, err["ctx"]["error"])
    if kind == "union_tag_invalid":
        word = given.get("kind") if isinstance(given, dict) else getattr(given, "kind", None)
        return dotted((*path, "kind")), f"got {shown(word)}; {_of_kind(cls, path, word)}"
    if kind == "union_tag_not_found":
        return dotted((*path, "kind")), f"required key is missing; {_known(cls, path)}"
    if kind in PART_EXPECTED and parts_of(type_at(cls, path)):
        return here, f"got {shown(given)}{WANTED}an object{_as_object(cls, path, given)}"
    message = err["msg"][0].lower() + err["msg"][1:]
    return here, f"got {shown(given)}; {message.replace('input should', 'it should')}"


def placed(cls: Any, path: Path, error: Exception) -> str:
    """What ``error`` says, which may name a place below ``path`` or below a part around it, with
    the whole place."""
    place, rest = _of_check(cls, path, error)
    return f"{place}: {rest}" if place else rest


def _of_check(cls: Any, path: Path, error: Exception) -> tuple[str, str]:
    """What a config's own check says, by the place that it names."""
    text = str(error)
    if getattr(error, "place", ""):
        return dotted((*path, error.place)), text  # type: ignore[attr-defined]
    named = _LEADING.match(text)
    if named is not None:
        keys = tuple(named[1].split("."))
        for size in range(len(path), -1, -1):
            if keys[0] in allowed_keys(cls, path[:size]):
                return dotted((*path[:size], *keys)), text[named.end() :]
    return dotted(path), text


def dotted(path: Path) -> str:
    """As written in an override."""
    return ".".join(map(str, path))


def shown(given: Any) -> str:
    """A value as in YAML, in short."""
    if isinstance(given, float) and not math.isfinite(given):
        return str(given)
    try:
        return json.dumps(given)[:80]
    except (TypeError, ValueError):
        return repr(given)[:80]


def of_unknown_key(cls: Any, path: Path, key: str, allowed: list[str]) -> str:
    """What to write instead of ``key``, which is not ``allowed`` at ``path``."""
    known = [member.explain_key for member in parts_of(type_at(cls, path)) if _explains(member)]
    said = next((text for explain in known if (text := explain(key))), "")
    if said:
        return said
    inner = [name for name in allowed if key in allowed_keys(cls, (*path, name))]
    if inner and key != "kind":
        return f"did you mean {' or '.join(f'{name}.{key}' for name in inner[:3])}?"
    near = nearest(key, allowed)
    return f"did you mean {near!r}?" if near else f"allowed here: {', '.join(allowed) or '-'}"


def _explains(member: Any) -> bool:
    return callable(getattr(member, "explain_key", None))


def _of_unknown(cls: Any, loc: Path) -> str:
    """What to write instead of the key that ``loc`` ends in; of the chosen kind for a union."""
    key = str(loc[-1])
    path, allowed, union = walk(cls, loc[:-1])
    if union and key in union[1]:
        members = {k.removeprefix("kind="): m for k, m in union[1].items() if k.startswith("kind=")}
        having = [repr(k) for k, m in members.items() if key in hints_of(m)]
        have = "has" if len(having) == 1 else "have"
        return f"not a key of kind {union[0]!r}; kind {', '.join(having)} {have} it"
    return of_unknown_key(cls, path, key, allowed)


def _known(cls: Any, path: Path) -> str:
    kinds = kinds_of(type_at(cls, path))
    return f"give one of {', '.join(map(repr, kinds))}"


def _of_kind(cls: Any, path: Path, word: Any) -> str:
    """What to write instead of a kind that there is not."""
    other = instead(cls, path, str(word))
    near = nearest(word, kinds_of(type_at(cls, path)))
    hint = f"{other}; kinds here" if other else f"did you mean {near!r}? Kinds" if near else "kinds"
    return f"{hint}: {', '.join(map(repr, kinds_of(type_at(cls, path))))}"


def _as_object(cls: Any, path: Path, given: Any) -> str:
    """How a part is written that was given as a word, a number or a switch."""
    named = [p for p in parts_of(type_at(cls, path[:-1])) if path[-1:] and _presets(p, path[-1])]
    if named and isinstance(given, str):
        return f": {{{PRESET}: {given}}}"
    tp = type_at(cls, path)
    kinds = kinds_of(tp)
    if kinds and isinstance(given, str):
        near = given if given in kinds else nearest(given, kinds)
        if near:
            return f": {{kind: {near}}}"
        other = instead(cls, path, given)
        return (f"; {other}" if other else "") + f"; kinds here: {', '.join(map(repr, kinds))}"
    if given is False and is_optional(tp):
        return " or null (which turns it off)"
    fixes = [fix for member in parts_of(tp) if (fix := _example(member, given))]
    return f": {' or '.join(fixes)}" if fixes else ""


def _presets(part: Any, key: str | int) -> bool:
    return key in getattr(part, "presets", {})


def _example(member: Any, given: Any) -> str:
    """A part with ``given`` for its first value that can be that; of ``true``, with a default."""
    no_default = [f for f in dataclasses.fields(member) if f.default is dataclasses.MISSING]
    if len(no_default) > 1:
        return ""
    kind = getattr(member, "kind", None)
    lead = f"kind: {kind}, " if isinstance(kind, str) else ""
    for field in dataclasses.fields(member):
        if field.name == "kind":
            continue
        if given is True and field.default is not dataclasses.MISSING:
            return f"{{{lead}{field.name}: {shown(field.default)}}}"
        if not isinstance(given, bool) and _is(hints_of(member)[field.name], given):
            return f"{{{lead}{field.name}: {shown(given)}}}"
    return ""


def _is(tp: Any, given: Any) -> bool:
    if given is None or parts_of(tp):
        return False
    try:
        TypeAdapter(tp).validate_python(given, strict=True)
    except ValidationError:
        return False
    return True
