"""What a manifest says beside its files, as far as it is the same for every kind of run."""

from __future__ import annotations

import hashlib
import platform
import socket
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

PACKAGES = ("xtdist", "torch", "deepspeed", "ray")


def environment(*, world: int, device: str) -> dict[str, Any]:
    """Where it was written. ``world``: workers that took part; ``device``: rank 0's."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "world": world,
        "device": device,
    }


def fingerprint(shapes: Mapping[str, Sequence[int]]) -> str:
    """One number for the names and shapes of a model's parameters, in any order."""
    lines = (f"{name} {tuple(shape)}\n" for name, shape in sorted(shapes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
