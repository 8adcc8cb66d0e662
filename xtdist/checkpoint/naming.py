"""Names of checkpoints. They sort by step, then by epoch of the lease, then by attempt: the later
of two that hold the same step is the one to go on from, whatever the clocks say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

NAME = re.compile(r"step_(\d{8,})-([0-9a-z]+)")
STAGING = ".staging-"
DOOMED = ".staging-delete-"
ASIDE = ("damaged", "undone")  # why a checkpoint was set aside
_ATTEMPT = re.compile(r"e(\d{4,})n(\d{4,})x[0-9a-z]+")


def name_of(step: int, attempt: str) -> str:
    """The folder of a checkpoint."""
    return f"step_{step:08d}-{attempt}"


def step_of(name: str) -> int:
    """The step that a name states."""
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is not a checkpoint's name")
    return int(found[1])


def new_attempt(epoch: int, names: Iterable[str]) -> str:
    """An id for one start of the workers, later than all of ``names`` and taken by nobody else:
    it keeps a worker that was cut off from writing into its successor's checkpoint."""
    found = [m for name in names if (m := _ATTEMPT.search(name))]
    count = 1 + max((int(m[2]) for m in found if int(m[1]) == epoch), default=0)
    return f"e{epoch:04d}n{count:04d}x{os.urandom(3).hex()}"
