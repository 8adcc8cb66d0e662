"""Patterns of file names: the same files match on every machine and every store."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase

from xtdist.config import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a name below the root (``a/b.txt``) matches: ``*``, ``?`` and ``[abc]`` within a
    part, ``**`` for any number of folders, ``{a,b}`` for alternatives.

    Raises:
        DataError: a pattern that leaves the root, is absolute, empty or not well-formed.
    """
    wanted = [alternative.split("/") for alternative in _expanded(pattern)]
    for parts in wanted:
        if ".." in parts:
            raise DataError(f"source.pattern: {pattern!r} leaves the folder of source.path")
        if not all(parts):
            raise DataError(
                f"source.pattern: {pattern!r} is not a usable pattern; give names below "
                "source.path, such as **/*.txt"
            )
        if any("**" in part and part != "**" for part in parts):
            raise DataError(
                f"source.pattern: {pattern!r} is not a usable pattern (** stands for whole "
                "folders: **/*.txt)"
            )

    def matches(name: str) -> bool:
        given = name.split("/")
        return any(_fits(given, parts) for parts in wanted)

    return matches


def _expanded(pattern: str) -> list[str]:
    found = _BRACES.search(pattern)
    if found is None:
        if "{" in pattern or "}" in pattern:
            raise DataError(
                f"source.pattern: {pattern!r} is not a usable pattern (a brace has no partner)"
            )
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [p for word in found[1].split(",") for p in _expanded(before + word + after)]


def _fits(given: list[str], wanted: list[str]) -> bool:
    if not wanted:
        return not given
    if wanted[0] == "**":
        return any(_fits(given[i:], wanted[1:]) for i in range(len(given) + 1))
    return bool(given) and fnmatchcase(given[0], wanted[0]) and _fits(given[1:], wanted[1:])
