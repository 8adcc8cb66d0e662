"""Which values of a config were set to something else than they are by default."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from xtdist.config.base import to_mapping
from xtdist.config.load import leaves


def other_than_default(config: Any, default: Any = None, path: str = "") -> Iterator[str]:
    """Paths of the values that differ from ``default``, or from their own class's without one; all
    values of parts of another kind, or that are off by default."""
    for field in dataclasses.fields(config):
        value, here = getattr(config, field.name), f"{path}{field.name}"
        usual = _default_of(field) if default is None else getattr(default, field.name)
        if not dataclasses.is_dataclass(value):
            if value != usual:
                yield here
        elif usual is dataclasses.MISSING:
            yield from other_than_default(value, None, f"{here}.")
        elif type(usual) is type(value):
            yield from other_than_default(value, usual, f"{here}.")
        else:
            yield from (k for k, _ in leaves(to_mapping(value), here))


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
