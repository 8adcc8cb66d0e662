"""What no path can be, said before anything is opened."""

from __future__ import annotations

from xtdist.config import ConfigError


def check_path(path: str, key: str = "path") -> None:
    """Raises ConfigError for an empty path (it would be the current folder), and for one with a
    NUL, which no file system takes."""
    if not path:
        raise ConfigError(f"{key}: got an empty text; give a path (. is the current folder)")
    if "\0" in path:
        raise ConfigError(f"{key}: got {path!r}; no path holds the character NUL, give another")
