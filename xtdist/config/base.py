"""Typed configs: frozen, keyword-only dataclasses that reject unknown keys.

Example:
    >>> @configclass
    ... class Optim:
    ...     lr: PositiveFloat = 1e-3
    >>> from_mapping(Optim, {"lr": 0.1}).lr
    0.1
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from xtdist.config.errors import ConfigError
from xtdist.config.fields import hints_of, parts_of
from xtdist.config.messages import WANTED, describe, joined, of_unknown_key, placed, shown

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
    """Make ``cls`` a frozen keyword-only dataclass that is checked strictly, read from outside or
    made in Python: ``Optim(lr=0)`` raises the ConfigError that the same YAML raises. A part may be
    given as a mapping: ``Model(optim={"lr": 0.1})``."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[attr-defined]
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    assign = made.__init__  # pydantic, which has checked everything, doesn't come by here

    @functools.wraps(assign)
    def init(self: Any, **given: Any) -> None:
        assign(self, **_checked(made, given))

    made.__init__ = init  # type: ignore[method-assign]
    return made


def _checked(cls: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The values of a config that is made in Python, parts that are mappings as configs."""
    problems: list[str] = []
    hints = hints_of(cls)
    values = {k: _value(cls, k, v, problems) for k, v in given.items() if k in hints}
    for key in given.keys() - hints.keys():
        problems.append(f"{key}: unknown key; {of_unknown_key(cls, (), key, sorted(hints))}")
    for field in dataclasses.fields(cls):
        no_default = field.default is field.default_factory is dataclasses.MISSING
        if no_default and field.name not in given:
            problems.append(f"{field.name}: required key is missing")
    if problems:
        raise ConfigError(joined(problems))
    return values


def _value(cls: Any, key: str, value: Any, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(value):
        members = parts_of(hints_of(cls)[key])
        if isinstance(value, tuple(members)):
            return value  # it was checked when it was made
        names = [member.__name__ for member in members]
        wanted = f"{' or '.join(names)}, or a mapping" if names else "plain data"
        problems.append(f"{key}: got {shown(value)}{WANTED}{wanted}")
        return value
    adapter = _field_adapter(cls, key)
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as e:
        errors = e
    try:
        return adapter.validate_json(json.dumps(value, default=_plain), strict=True)
    except ValidationError as e:
        errors = e
    except (TypeError, ValueError, RecursionError):
        pass  # no plain data: what is wrong with it as an object
    for err in errors.errors(include_url=False):
        err["loc"] = (key, *err["loc"])
        problems.append(describe(cls, err))
    return value


def _plain(value: Any) -> Any:
    """A config within plain data."""
    if not dataclasses.is_dataclass(value):
        raise TypeError(type(value).__name__)
    return to_mapping(value)


@functools.cache
def _field_adapter(cls: Any, key: str) -> TypeAdapter[Any]:
    return TypeAdapter(hints_of(cls)[key])


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
        odd = _odd(mapping)
        said = f"{odd}; give plain data: numbers, texts, lists, mappings" if odd else str(e)
        raise ConfigError(f"{where or cls.__name__}: not plain data: {said}") from None
    try:
        config: T = _adapter(cls).validate_json(text)
    except ValidationError as e:
        problems = [describe(cls, err, where) for err in e.errors(include_url=False)]
        raise ConfigError(joined(problems)) from None
    return config


def _odd(mapping: Any) -> str:
    """The first entry that is no plain data, and what it is."""
    for key, value in mapping.items() if isinstance(mapping, Mapping) else ():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            inner = _odd(value)
            kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
            return f"{key}.{inner}" if inner else f"{key}={value!r:.60} is a {kind}"
        except RecursionError:
            return ""
    return ""


@contextlib.contextmanager
def within(cls: Any, *path: str) -> Iterator[None]:
    """What is wrong with the part at ``path`` of a ``cls`` is said with that place."""
    try:
        yield
    except ConfigError as e:
        raise ConfigError(placed(cls, path, e)) from None


def to_mapping(config: Any) -> dict[str, Any]:
    """The config as plain JSON-able data; ``from_mapping(type(c), to_mapping(c)) == c``."""
    return json.loads(_adapter(type(config)).dump_json(config))


def digest(config: Any) -> str:
    """sha256 of the config's canonical JSON: equal configs have equal digests."""
    text = json.dumps(to_mapping(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
