"""What a manifest says beside its files, as far as it is the same for every kind of run."""

from __future__ import annotations

import hashlib
import platform
import socket
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("xtdist", "torch", "deepspeed", "ray")


def environment(*, world: int, device: str) -> dict[str, Any]:
    """Where it was written. ``world``: workers that took part; ``device``: rank 0's."""
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "world": world,
        "device": device,
    }


def _version(package: str) -> str | None:
    """None where it is not installed: a state can be saved without Ray."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def fingerprint(shapes: Mapping[str, Sequence[int]]) -> str:
    """One number for the names and shapes of a model's parameters, in any order."""
    lines = (f"{name} {tuple(shape)}\n" for name, shape in sorted(shapes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
