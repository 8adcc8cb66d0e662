"""What is in force, said and written before the first step."""

from __future__ import annotations

import json
import logging

import torch.distributed as dist

from xtdist.files import write_atomic
from xtdist.track.notes import write_note
from xtdist.train.callbacks.base import Callback
from xtdist.train.in_force import check, facts_of, lines
from xtdist.train.optimizer import check_muon
from xtdist.train.run import Run
from xtdist.train.step import StepResult

FILE = "in_force.json"
_log = logging.getLogger(__name__)


class InForce(Callback):
    """Compares at the start, on every rank; rank 0 leaves ``<run>/in_force.json`` and notes."""

    def __init__(self) -> None:
        self._compiles = self._first = False

    def started(self, run: Run) -> None:
        facts = facts_of(run.stepper.engine, run.spec)
        check(facts)
        self._compiles, self._first = run.spec.engine.compile is not None, True
        if dist.get_rank() == 0:
            found = {fact.name: fact.found for fact in facts} | {"engine": _told(run)}
            try:
                write_atomic(run.folder / FILE, json.dumps(found, indent=1, default=str))
            except OSError as e:  # a record, which no run waits for
                _log.warning("%s: not written (%s)", run.folder / FILE, e.strerror)
            for line in lines(facts):
                write_note(run.folder, run.position.step, line)

    def stepped(self, run: Run, result: StepResult) -> None:
        """After the first step, what was compiled of it, and whether Muon had every matrix."""
        if self._first and run.spec.engine.precision != "fp16":  # which may skip it
            check_muon(run.stepper.engine, steps=1)
        self._first = False
        if not self._compiles:
            return
        self._compiles = False
        from torch._dynamo.utils import counters  # seconds to import

        graphs = counters["stats"]["unique_graphs"]
        if not graphs:
            raise RuntimeError("engine.compile is set, but the first step compiled no graph")
        if dist.get_rank() == 0:
            breaks = sum(counters["graph_break"].values())
            write_note(run.folder, run.position.step, f"compiled {graphs} graphs, {breaks} breaks")


def _told(run: Run) -> dict[str, object]:
    """What DeepSpeed was told, as the engine has it."""
    config = run.stepper.engine.config
    assert isinstance(config, dict)
    return dict(config)
