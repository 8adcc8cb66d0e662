"""``<run>/interventions.jsonl``: what a run changed about itself, one JSON object per line.

Rank 0 writes it before the run goes on, and every start of the run reads it: the same steps of data
are left out and the same learning rate is used, however often it is interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from xtdist.config import (
    CheckpointError,
    ConfigError,
    PositiveFloat,
    ResourceError,
    configclass,
    from_mapping,
    to_mapping,
)
from xtdist.data.config import FirstStep, LaterStep
from xtdist.train.spec import RunSpec

FILE = "interventions.jsonl"
What = Literal["retry", "skip", "stop"]
Why = Literal["non_finite", "spike", "early_stop"]


@configclass
class Intervention:
    """One of them.

    Attributes:
        what: ``retry``: went back and repeats the same; ``skip``: went back and leaves ``skip``
            out; ``stop``: ended.
        step: the training step at which it began, counted from 0.
        data_step: the step of data that it read.
        text: in words.
        skip: half-open range of steps of data.
        lr_factor: on the learning rate, from training step ``from_step`` on.
    """

    what: What
    why: Why
    step: int
    data_step: int
    text: str
    skip: tuple[FirstStep, LaterStep] | None = None
    lr_factor: PositiveFloat = 1.0
    from_step: int = 0
    time: float = 0.0

    def __post_init__(self) -> None:
        if self.skip is not None and self.skip[0] >= self.skip[1]:
            raise ConfigError(f"skip: got {list(self.skip)}, which is empty")


@dataclass(frozen=True)
class Interventions:
    """All of a run, oldest first."""

    rows: tuple[Intervention, ...] = ()

    @property
    def skip(self) -> list[tuple[int, int]]:
        """What they leave out."""
        return [row.skip for row in self.rows if row.skip is not None]

    def lr_factor(self, step: int) -> float:
        """On the learning rate of training step ``step``."""
        factor = 1.0
        for row in self.rows:
            if row.from_step <= step:
                factor *= row.lr_factor
        return factor

    def since_stop(self, why: Why) -> list[Intervention]:
        """Those for one reason since it last stopped the run: whoever starts it again wants it to
        try again."""
        found = [row for row in self.rows if row.why == why]
        stops = [i for i, row in enumerate(found) if row.what == "stop"]
        return found[stops[-1] + 1 :] if stops else found

    def applied_to(self, spec: RunSpec) -> RunSpec:
        """``spec`` with the data that is left out by now."""
        if not self.skip:
            return spec
        skip = tuple(_union([*spec.data.skip, *self.skip]))
        return dataclasses.replace(spec, data=dataclasses.replace(spec.data, skip=skip))


def read(folder: Path) -> Interventions:
    """Those of the run in ``folder``.

    Raises:
        CheckpointError: it can't be read, or a line is damaged. A torn last line is not: what it
            was about to say had not begun.
    """
    try:
        lines = (folder / FILE).read_bytes().split(b"\n")
    except FileNotFoundError:
        return Interventions()
    except OSError as e:
        raise CheckpointError(
            f"{folder / FILE}: can't be read ({e.strerror}); it says which data the run leaves "
            "out: put it back, or remove it and the checkpoints after it"
        ) from None
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            raw = json.loads(line) if line else None
            rows += [from_mapping(Intervention, raw)] if raw is not None else []
        except (ValueError, RecursionError, ConfigError) as e:
            raise CheckpointError(
                f"{folder / FILE}, line {number}: it is damaged ({e}); it says which data the run "
                "leaves out: repair the line, or remove the file and the checkpoints after it"
            ) from None
    return Interventions(tuple(rows))


def read_together(folder: Path) -> Interventions:
    """The same on all ranks, from rank 0.

    Raises:
        CheckpointError: on all ranks; see :func:`read`.
    """
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            answer[0] = read(folder)
        except CheckpointError as e:
            answer[0] = e
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], CheckpointError):
        raise answer[0]
    found: Interventions = answer[0]
    return found


def append(folder: Path, row: Intervention) -> None:
    """Add one, on the disk when this returns. Rank 0 only.

    Raises:
        ResourceError: the file can't be written.
    """
    path, row = folder / FILE, dataclasses.replace(row, time=round(time.time(), 3))
    try:
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        if torn:  # by a kill while it was written; what it says never began
            whole = path.read_bytes()
            os.truncate(path, whole.rfind(b"\n") + 1)
        with path.open("ab") as file:
            file.write(json.dumps(to_mapping(row)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        raise ResourceError(f"{path}: can't be written ({e.strerror})") from None


def stopped_early(folder: Path, step: int) -> bool:
    """Whether the run in ``folder`` ended at ``step`` because its metric got no better."""
    last = read(folder).rows[-1:]
    return bool(last) and last[0].why == "early_stop" and last[0].step == step


def _union(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending and disjoint; ranges that only touch stay apart."""
    out: list[tuple[int, int]] = []
    for first, stop in sorted(ranges):
        if out and first < out[-1][1]:
            out[-1] = (out[-1][0], max(stop, out[-1][1]))
        else:
            out.append((first, stop))
    return out
