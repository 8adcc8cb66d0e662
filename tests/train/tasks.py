"""Stands in for Ray's tasks in workers that belong to no cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from xtdist.checkpoint import Saver, read_manifest, verify
from xtdist.config import from_mapping, to_mapping
from xtdist.train import aside
from xtdist.train.aside import AsideJob, Findings, examine
from xtdist.train.callbacks import aside as callback

POOL = ThreadPoolExecutor(1)


class InThread:
    """``examine`` in a thread of rank 0."""

    def __init__(self, job: AsideJob, spec: Any) -> None:
        self.job = job
        self._answer = POOL.submit(examine, to_mapping(job))

    def findings(self) -> Findings | None:
        done = self._answer.done()
        return from_mapping(Findings, self._answer.result()) if done else None

    def cancel(self) -> None:
        """It ends by itself."""


class Reader:
    """Takes five looks to come to an end, and by then its checkpoint must still be all there."""

    def __init__(self, job: AsideJob, spec: Any) -> None:
        self.job, self._looks = job, 0

    def findings(self) -> Findings | None:
        self._looks += 1
        if self._looks < 5:
            return None
        folder = Path(self.job.place) / self.job.name
        verify(folder, read_manifest(folder))
        loss = float(self.job.step) if self.job.validate else 0.0
        return Findings(metrics={"eval/valid/loss": loss}, texts=[])

    def cancel(self) -> None:
        """There is nothing to end."""


class Failing(Reader):
    """Fails on the checkpoint of step 4; one of step 8 can't even be started."""

    def __init__(self, job: AsideJob, spec: Any) -> None:
        super().__init__(job, spec)
        if job.step == 8:
            raise ConnectionError("nobody answers")

    def findings(self) -> Findings | None:
        if self.job.step == 4:
            raise OSError("its node burnt down")
        return super().findings()


def tasks(kind: Callable[..., Any], *, waiting: bool = False) -> Callable[[Path], Any]:
    """``kind`` instead of tasks of Ray. waiting: no step begins while a checkpoint is written, so
    that every one of them is seen by a task."""

    @contextmanager
    def instead(folder: Path) -> Iterator[None]:
        submit = Saver.submit

        def written(self: Saver, *given: Any) -> None:
            submit(self, *given)
            self.wait()

        with (
            patch.object(callback, "Task", kind),
            patch.object(callback, "in_a_cluster", _yes),
            patch.object(Saver, "submit", written if waiting else submit),
        ):
            yield

    return instead


def _yes() -> bool:
    assert not aside.in_a_cluster()
    return True
