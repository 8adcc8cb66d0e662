"""A trial of Ray Tune: one of our training runs, driven from the trial's process.

Only this file and ``tuning.py`` know Tune.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from ray import tune

from xtdist.config import UserError, from_mapping
from xtdist.launch.sweep.records import Status
from xtdist.launch.trainer import Outcome, TrainingFailedError, run_training
from xtdist.track import Tail
from xtdist.track.records import to_series
from xtdist.train.spec import RunSpec

STEP, VALUE, STATUS, ERROR = "xtdist_step", "xtdist_value", "xtdist_status", "xtdist_error"
"""Keys of what is reported to Tune."""
LOG_FILE = "driver.log"
POLL_S = 0.2
WORST = 1e30


class SweepTrial(tune.Trainable):
    """``step`` gives Tune one validation; when Tune stops the trial, its workers save a checkpoint
    and end.

    Validations that the run has already (it was interrupted, or is over) are given first, so that
    the scheduler knows what it knew.
    """

    def setup(self, config: dict[str, Any]) -> None:
        config = config["trial"]
        os.environ["RAY_ADDRESS"] = config["address"]
        self.spec = from_mapping(RunSpec, config["spec"])
        self.run_folder = Path(self.spec.output) / self.spec.name
        self.metric, self.sign = config["metric"], 1 if config["lower_is_better"] else -1
        self.over: Status | None = config["over"]
        self.stop_file = Path(config["stop_file"])
        self.tail = Tail(self.run_folder)
        series = to_series(self.tail.poll_all()).get(self.metric)
        known = zip(series.steps, series.values, strict=True) if series else ()
        self.points: deque[tuple[int, float]] = deque(known)
        self.last = (0, WORST * self.sign)
        self.outcome: Outcome | BaseException | None = None  # the error of a run that failed
        self.stop_run = threading.Event()
        self.thread: threading.Thread | None = None

    def step(self) -> dict[str, Any]:
        """The next validation; at the end the last one again, with how it ended."""
        while not self.points:
            if self.over is not None:
                return self._result(self.over)
            if self.stop_file.exists():
                self.stop_run.set()
            if self.thread is None:
                if self.stop_run.is_set():
                    return self._result("unfinished")
                self.thread = threading.Thread(target=self._train, name="run", daemon=True)
                self.thread.start()
            alive = self.thread.is_alive()
            self._poll()
            if not alive and not self.points:
                return self._result(*self._ended())
            time.sleep(POLL_S)
        self.last = self.points.popleft()
        return self._result(None)

    def cleanup(self) -> None:
        """Tune stops the trial: have its run save and end."""
        self.stop_run.set()
        if self.thread is not None:
            self.thread.join()

    def _result(self, status: Status | None, error: str = "") -> dict[str, Any]:
        step, value = self.last
        value = value if math.isfinite(value) else WORST * self.sign
        return {STEP: step, VALUE: value, STATUS: status or "", ERROR: error, "done": bool(status)}

    def _poll(self) -> None:
        for record in self.tail.poll_all():
            value = record.values.get(self.metric)
            if value is not None and record.step > self.last[0]:
                self.points.append((record.step, value))

    def _ended(self) -> tuple[Status, str]:
        """How the run ended, and why if it failed."""
        if isinstance(self.outcome, Outcome):
            if not self.outcome.finished:
                return "unfinished", ""
            if self.last[0] == 0:
                return "failed", f"came to its end without ever measuring {self.metric}"
            return "finished", ""
        said = (str(self.outcome).strip().splitlines() or [""])[0]
        own = isinstance(self.outcome, UserError | TrainingFailedError)
        return "failed", said if own else f"{type(self.outcome).__name__}: {said}"

    def _train(self) -> None:
        try:
            self.run_folder.mkdir(parents=True, exist_ok=True)
            with (
                (self.run_folder / LOG_FILE).open("a", buffering=1) as log,
                contextlib.redirect_stdout(log),
            ):
                self.outcome = run_training(self.spec, stop=self.stop_run)
        except BaseException as e:
            self.outcome = e
