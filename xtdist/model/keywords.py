"""Keyword arguments that are the fields of a config."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from xtdist.config import from_mapping

T = TypeVar("T")


def config_of(cls: type[T], keywords: Mapping[str, Any], *, name: str) -> T:
    """``cls(**keywords)``, checked; ``name`` is what the user called.

    Raises:
        TypeError: a keyword that is unknown, with the nearest one.
        ConfigError: a value that is not allowed.
    """
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for keyword in keywords:
        if keyword in known:
            continue
        near = difflib.get_close_matches(keyword, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise TypeError(f"{name}: unknown keyword {keyword!r}; {hint}")
    return from_mapping(cls, keywords, where=name)
