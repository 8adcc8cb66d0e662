"""Config files: YAML plus ``path=value`` overrides, with the place of every value remembered.

``xtdist train jobs/configs/demo_ar.yaml optim.lr=3e-4 model.depth=24``

A config class may say of some of its parts that they can be named: ``presets`` maps the part to the
function that makes it whole, as in ``model: {preset: llama-125m, depth: 24}``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from xtdist.config.base import from_mapping
from xtdist.config.errors import ConfigError
from xtdist.config.fields import PRESET, allowed_keys, takes_any_key
from xtdist.config.messages import of_unknown_key

T = TypeVar("T")
MAX_BYTES = 1_000_000
_CREDENTIALS = re.compile(r"(://)[^/\s@]*(?=@)|([?&]\w*(?:password|token|secret)\w*=)[^&\s]*", re.I)
MASKED = r"\1\2…"
Expand = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[T]):
    """A config and where each of its values came from (``a.b`` → ``file:line`` or the override).
    ``notes``: what was done with the file that a user may not expect, one sentence each."""

    config: T
    sources: dict[str, str]
    notes: tuple[str, ...] = ()


class _Loader(yaml.SafeLoader):
    """safe_load without its surprises: 3e-4 is a number, on/off/yes/no are words, keys are unique,
    no aliases or merges (a small file can not become a large tree), 010 is not 8, 1:30 not 90."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(getattr(key, "value", ""))
            if name in seen:
                raise yaml.MarkedYAMLError(None, None, f"duplicate key {name!r}", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"^[-+]?((\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+)$")
_INT = re.compile(r"^[-+]?(0|[1-9][0-9_]*)$")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, rx) for tag, rx in pairs if tag.rsplit(":", 1)[1] == "null"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> Loaded[T]:
    """Read ``path``, apply ``a.b=value`` overrides, fill in presets, check everything.

    A preset that an override names replaces the whole part of the file, which is noted; the other
    overrides change it, in whatever order they are given. A mapping changes single values of a
    part; with another ``kind`` than the part has it replaces it.

    Raises:
        ConfigError: unreadable file, bad YAML, unknown key (with the nearest name), wrong type or
            range; each with file and line, or the override that brought it.
    """
    tree, sources = read_yaml(Path(path))
    named = {f"{part}.{PRESET}" for part in _presets(cls)}
    notes: list[str] = []
    for text in sorted(overrides, key=lambda text: text.partition("=")[0] not in named):
        _apply(cls, tree, sources, text, notes)
    for part, expand in _presets(cls).items():
        _fill_in(cls, part, expand, tree, sources)
    try:
        return Loaded(config=from_mapping(cls, tree), sources=sources, notes=tuple(notes))
    except ConfigError as e:
        lines = [f"{_place(line, sources, str(path))}: {line}" for line in str(e).splitlines()]
        raise ConfigError("\n".join(lines)) from None


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A YAML mapping and, for every key path in it, ``file:line``."""
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{path}: can't be read ({e.strerror}); give a config file") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: {len(raw)} bytes; a config has at most {MAX_BYTES}")
    try:
        text = raw.decode()
        node = yaml.compose(text, Loader=_Loader)
        tree = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except (yaml.YAMLError, ValueError) as e:
        mark = getattr(e, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(e, "problem", None) or str(e).splitlines()[0]
        raise ConfigError(f"{path}{line}: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply to be a config") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}; a config is a mapping of keys")
    sources: dict[str, str] = {}
    _record_lines(node, (), str(path), sources)
    return tree, sources


def parse_value(text: str) -> Any:
    """An override's value as YAML: ``3e-4`` a number, ``[1, 2]`` a list, ``null`` nothing."""
    return yaml.load(text, Loader=_Loader)


def _record_lines(node: Any, path: tuple[str, ...], file: str, out: dict[str, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            out[".".join(here)] = f"{file}:{key.start_mark.line + 1}"
            _record_lines(value, here, file, out)


def _presets(cls: Any) -> Mapping[str, Expand]:
    """The parts of ``cls`` that may name a preset."""
    return getattr(cls, "presets", {})


def _keys(cls: Any, path: tuple[str, ...]) -> list[str]:
    """The keys that a file may have at ``path``."""
    named = len(path) == 1 and path[0] in _presets(cls)
    return [*allowed_keys(cls, path), *([PRESET] if named else [])]


def _fill_in(
    cls: Any, part: str, expand: Expand, tree: dict[str, Any], sources: dict[str, str]
) -> None:
    """What a preset says, under what the file and the overrides say."""
    given = tree.get(part)
    if not isinstance(given, dict):
        return
    for key in given.keys() - {PRESET, *allowed_keys(cls, (part,))}:
        if difflib.get_close_matches(str(key), [PRESET], cutoff=0.8):
            place = sources[f"{part}.{key}"]
            raise ConfigError(f"{place}: {part}.{key}: unknown key; did you mean {PRESET!r}?")
    if PRESET not in given:
        return
    place = sources[f"{part}.{PRESET}"]
    try:
        tree[part] = expand(given)
    except ConfigError as e:
        raise ConfigError(f"{place}: {part}.{e}") from None
    for path, _ in leaves(tree[part], part):
        sources.setdefault(path, f"preset {given[PRESET]!r}")


def leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every value that is no mapping of values, with its place ``a.b``."""
    if not isinstance(tree, dict) or not tree:
        return [(path, tree)]
    return [leaf for k, v in tree.items() for leaf in leaves(v, f"{path}.{k}" if path else k)]


def _apply(
    cls: Any, tree: dict[str, Any], sources: dict[str, str], text: str, notes: list[str]
) -> None:
    path, eq, _ = text.partition("=")
    keys = path.split(".")
    if not eq or not all(keys):
        raise ConfigError(f"override {text!r}: write it as key.path=value, as in optim.lr=3e-4")
    # A user and password in an address are refused later, in a sentence that names the source.
    source = f"override {_CREDENTIALS.sub(MASKED, text)!r}"
    node = tree
    for i, key in enumerate(keys):
        allowed = _keys(cls, tuple(keys[:i]))
        if key not in allowed and not takes_any_key(cls, tuple(keys[:i])):
            hint = of_unknown_key(cls, tuple(keys[:i]), key, allowed)
            raise ConfigError(f"{source}: unknown key {key!r}; {hint}")
        if i < len(keys) - 1:
            child = node.get(key)
            if not isinstance(child, dict):
                child = node[key] = {}
                sources[".".join(keys[: i + 1])] = source
            node = child
    value = _override_value(text)
    old = node.get(keys[-1])
    if keys[-1] == PRESET and len(keys) == 2:
        notes += _dropped(keys[0], old=tree.get(keys[0]), sources=sources, source=source)
        tree[keys[0]] = {PRESET: value}
        _set_source(keys[0], tree[keys[0]], source, sources)
    elif isinstance(value, dict) and isinstance(old, dict) and changes_part(old, value):
        node[keys[-1]] = {**old, **value}
        sources[path] = source
        for key, part in value.items():
            _set_source(f"{path}.{key}", part, source, sources)
    else:
        node[keys[-1]] = value
        _set_source(path, value, source, sources)


def changes_part(old: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    """Whether ``value`` changes single values of ``old``; otherwise it takes its place."""
    return PRESET not in value and value.get("kind", old.get("kind")) == old.get("kind")


def _override_value(text: str) -> Any:
    path, _, value_text = text.partition("=")
    try:
        value = parse_value(value_text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(
            f"override {text[:80]!r}: its value is not a YAML value; words that begin with one of "
            f"* & ! % @ ` need quotes of their own: '{path}=\"...\"'"
        ) from None
    if str(value).count("#") < value_text.count("#"):
        raise ConfigError(
            f"override {text!r}: YAML takes what follows '#' for a comment; quote the value, as in "
            f"{path}='\"a #b\"'"
        )
    return value


def _dropped(part: str, *, old: Any, sources: dict[str, str], source: str) -> list[str]:
    """That a preset took the place of what the file says of ``part``."""
    gone = [key for key, _ in leaves(old, part) if key in sources]
    if not isinstance(old, dict) or not gone or sources[part] == source:
        return []
    several = f"{', '.join(gone[:8])}{' …' if len(gone) > 8 else ''}"
    return [f"{source} replaces all of {part} in {sources[part]}: {several}"]


def _set_source(path: str, value: Any, source: str, sources: dict[str, str]) -> None:
    """``value`` and all in it is from ``source``; what stood at ``path`` is gone."""
    for known in [k for k in sources if k.startswith(f"{path}.")]:
        del sources[known]
    sources[path] = source
    if isinstance(value, dict):
        for key, part in value.items():
            _set_source(f"{path}.{key}", part, source, sources)


def _place(line: str, sources: dict[str, str], default: str) -> str:
    """Where the key that an error line starts with was set, or an override that brought one of the
    other values that it names."""
    keys, found = line.split(": ", 1)[0].split("."), default
    if "required key is missing" in line and ".".join([*keys[:-1], "kind"]) in sources:
        keys = [*keys[:-1], "kind"]
    for size in range(len(keys), 0, -1):
        if ".".join(keys[:size]) in sources:
            found = sources[".".join(keys[:size])]
            break
    named = [f"{lead}{name}" for name in _NAMED.findall(line) for lead in ("", f"{keys[0]}.")]
    overrides = [sources[n] for n in named if sources.get(n, "").startswith("override ")]
    return overrides[0] if overrides and not found.startswith("override ") else found


_NAMED = re.compile(r"[a-z_]+(?:\.[a-z_0-9]+)*(?==)")
"""Further places in a message: ``place=value``."""
