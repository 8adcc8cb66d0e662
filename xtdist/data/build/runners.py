"""What works on the units of a build: this process, processes beside it, or a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar, assert_never

from xtdist.data.build.config import LocalRunner, RayRunner, RunnerConfig
from xtdist.data.build.processes import Processes
from xtdist.data.build.ray_tasks import RayTasks

R = TypeVar("R", covariant=True)


class Task(Protocol[R]):
    """Work on one unit. It can be pickled, and done twice or by two at once without harm; it tells
    ``advance`` how many bytes of text are done."""

    @property
    def name(self) -> str: ...

    def __call__(self, advance: Callable[[int], None]) -> R: ...


class Runner(Protocol):
    """Does tasks, in any order; their results come in the order of the tasks."""

    def run(self, tasks: Sequence[Task[R]], advance: Callable[[int], None]) -> list[R]:
        """
        Raises:
            UserError, OSError: what a task raised.
            ResourceError: a worker died; names the unit.
        """
        ...


def make_runner(config: RunnerConfig, shared: Path) -> AbstractContextManager[Runner]:
    """``shared``: the folder that workers on every node must see."""
    match config:
        case LocalRunner():
            return Processes(config.workers or _cores())
        case RayRunner():
            return RayTasks(shared)
        case _:
            assert_never(config)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
