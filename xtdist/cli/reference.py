"""``python -m xtdist.cli.reference > jobs/configs/REFERENCE.md``: every key of every YAML, from the
types that read them."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from xtdist.config.fields import hints_of
from xtdist.data import PrepareConfig
from xtdist.launch.sweep.spec import SweepSpec
from xtdist.serve.config import ServeConfig
from xtdist.train.spec import RunSpec

ROOTS: Mapping[str, type] = {
    "Datasets: `xtdist prepare`": PrepareConfig,
    "Runs: `xtdist train`": RunSpec,
    "Sweeps: `xtdist sweep`": SweepSpec,
    "Endpoints: `xtdist serve --config`": ServeConfig,
}
HEAD = """# Every key of every config

Made of the types that read them (`python -m xtdist.cli.reference`). A part has a table of its keys;
where a key takes one of several kinds, `kind:` says which, and each kind has a part of its own
below. `xtdist config FILE --all` shows the values of a file and where each comes from.
"""


def reference() -> str:
    """The whole page, in Markdown."""
    parts = [HEAD]
    seen = set[type]()
    for title, root in ROOTS.items():
        parts.append(f"## {title}\n")
        queue = deque([root])
        while queue:
            cls = queue.popleft()
            if cls not in seen:
                seen.add(cls)
                parts.append(_part(cls))
                queue.extend(_inner(cls))
    return "\n".join(parts)


def _part(cls: type) -> str:
    """One class: what it says of itself, and its keys."""
    about = inspect.getdoc(cls) or ""
    kind = _default_of(cls, "kind")
    name = f"{cls.__name__}" + (f" (`kind: {kind}`)" if isinstance(kind, str) else "")
    lines = [f"### {name}\n", _prose(about), "", "| key | takes | default |", "| --- | --- | --- |"]
    hints = hints_of(cls)
    for field in dataclasses.fields(cls):
        if field.name != "kind" or not isinstance(kind, str):
            lines.append(f"| `{field.name}` | {_words(hints[field.name])} | {_default(field)} |")
    return "\n".join(lines) + "\n"


def _prose(doc: str) -> str:
    """A docstring as Markdown: its list of attributes becomes a list."""
    prose, _, attributes = doc.replace("``", "`").partition("\nAttributes:\n")
    items: list[str] = []
    for line in inspect.cleandoc(attributes).splitlines():
        if line[:1].strip():
            name, _, text = line.partition(":")
            items.append(f"- `{name}`:{text}")
        elif items:
            items[-1] += f" {line.strip()}"
    return "\n".join([prose.strip(), *([""] if items else []), *items])


def _default_of(cls: type, name: str) -> Any:
    return next((f.default for f in dataclasses.fields(cls) if f.name == name), None)


def _default(field: dataclasses.Field[Any]) -> str:
    value, factory = field.default, field.default_factory
    if value is dataclasses.MISSING:
        if factory is dataclasses.MISSING:
            return "**needed**"
        value = factory()
    if dataclasses.is_dataclass(value):
        kind = getattr(value, "kind", None)
        return f"`{{kind: {kind}}}`" if isinstance(kind, str) else "its defaults"
    if value is None or value in ((), {}):
        return "none" if value is None else "`[]`" if value == () else "`{}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _words(hint: Any) -> str:
    """A type as people write it in YAML."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _words(args[0])
    if origin is Literal:
        return " or ".join(f"`{str(a).lower() if isinstance(a, bool) else a}`" for a in args)
    if origin in (Union, types.UnionType):
        found = [_words(a) for a in args if a is not type(None)]
        return " or ".join(found + ["none"] * (type(None) in args))
    if origin in (tuple, list):
        return f"a list of {_words(args[0])}"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return f"names, each with {_words(args[1])}"
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return f"[{hint.__name__}](#{_anchor(hint)})"
    names = {int: "a whole number", float: "a number", str: "text", bool: "`true` or `false`"}
    return names.get(hint, str(getattr(hint, "__name__", hint)))


def _anchor(cls: Any) -> str:
    kind = _default_of(cls, "kind")
    return cls.__name__.lower() + (f"-kind-{kind}" if isinstance(kind, str) else "")


def _inner(cls: type) -> Iterator[type]:
    """The classes that its keys take."""
    queue = deque(hints_of(cls).values())
    while queue:
        hint = queue.popleft()
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield hint
        queue.extend(get_args(hint) if get_origin(hint) is not Literal else ())


if __name__ == "__main__":
    print(reference(), end="")
