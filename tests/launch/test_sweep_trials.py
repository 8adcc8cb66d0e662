"""A trial as Ray Tune drives it: validations one by one, how it ended, and what stops it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.launch.sweep import trainable
from xtdist.launch.sweep.callbacks import SweepCallback, SweepStopper
from xtdist.launch.sweep.draw import Trial
from xtdist.launch.sweep.records import Ended, read_ends
from xtdist.launch.sweep.spec import SweepSpec
from xtdist.launch.sweep.trainable import ERROR, STATUS, STEP, VALUE, SweepTrial
from xtdist.launch.sweep.tuning import STOP_FILE, Progress
from xtdist.launch.trainer import Outcome, TrainingFailedError
from xtdist.track.records import MetricLog
from xtdist.train.spec import RunSpec

Run = Callable[..., Outcome]
Make = Callable[..., SweepTrial]


def spec_of(folder: Path, steps: int = 30) -> RunSpec:
    tree = {
        "name": "trial-000",
        "output": str(folder),
        "data": {"path": "nowhere", "seq_len": 16},
        "model": {"dim": 32, "depth": 1, "heads": 4, "attention": {"dim_head": 8}},
        "batch": {"tokens_per_step": 64},
        "loop": {"steps": steps, "valid_every": 10},
    }
    return from_mapping(RunSpec, tree)


def measure(folder: Path, *points: tuple[int, float]) -> None:
    log = MetricLog(folder / "trial-000")
    for step, loss in points:
        log.append(step, {"eval/valid/loss": loss})
    log.close()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A trial whose training is a function."""
    monkeypatch.setenv("RAY_ADDRESS", "as it was")
    made: list[SweepTrial] = []

    def trial(run: Run, over: str | None = None) -> SweepTrial:
        monkeypatch.setattr(trainable, "run_training", run)
        config = {
            "number": 0,
            "spec": to_mapping(spec_of(tmp_path)),
            "metric": "eval/valid/loss",
            "lower_is_better": True,
            "over": over,
            "stop_file": str(tmp_path / STOP_FILE),
            "address": "somewhere:1",
        }
        made.append(SweepTrial({"trial": config}))
        return made[-1]

    yield trial
    for each in made:
        each.cleanup()


def reports(trial: SweepTrial) -> list[tuple[int, float, str]]:
    found: list[tuple[int, float, str]] = []
    while not found or not found[-1][2]:
        result = trial.step()
        assert result["done"] == bool(result[STATUS])
        found.append((result[STEP], result[VALUE], result[STATUS]))
    return found


def test_it_reports_each_validation_and_then_its_end(make: Make, tmp_path: Path) -> None:
    def run(spec: RunSpec, *, stop: threading.Event) -> Outcome:
        print("what a driver says")
        measure(tmp_path, (10, 4.0), (20, float("nan")), (30, 2.0))
        return Outcome(tmp_path, 30, 30, reused=False)

    assert reports(make(run)) == [
        (10, 4.0, ""),
        (20, 1e30, ""),  # Tune's schedulers can't compare nan
        (30, 2.0, ""),
        (30, 2.0, "finished"),
    ]
    assert "what a driver says" in (tmp_path / "trial-000" / "driver.log").read_text()


def test_what_an_interrupted_run_had_measured_is_reported_first(make: Make, tmp_path: Path) -> None:
    measure(tmp_path, (10, 4.0), (20, 3.0), (10, 4.5))  # it went back, to the checkpoint at 0

    def run(spec: RunSpec, *, stop: threading.Event) -> Outcome:
        measure(tmp_path, (20, 3.5), (30, 2.0))
        return Outcome(tmp_path, 30, 30, reused=False)

    assert [r[:2] for r in reports(make(run))] == [(10, 4.5), (20, 3.5), (30, 2.0), (30, 2.0)]


def test_a_trial_that_is_over_only_repeats_what_it_measured(make: Make, tmp_path: Path) -> None:
    def run(spec: RunSpec, *, stop: threading.Event) -> Outcome:
        raise AssertionError("trained again")

    measure(tmp_path, (10, 4.0))
    assert reports(make(run, over="stopped")) == [(10, 4.0, ""), (10, 4.0, "stopped")]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("optim.lr: no\nand more"), "optim.lr: no"),
        (TrainingFailedError("workers died"), "workers died"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_a_run_that_fails_is_a_result_with_its_reason(
    make: Make, error: Exception, said: str
) -> None:
    def run(spec: RunSpec, *, stop: threading.Event) -> Outcome:
        raise error

    result = make(run).step()
    assert (result[STATUS], result[ERROR], result["done"]) == ("failed", said, True)


def test_a_run_that_never_measures_has_failed(make: Make, tmp_path: Path) -> None:
    result = make(lambda spec, *, stop: Outcome(tmp_path, 30, 30, reused=False)).step()
    assert result[STATUS] == "failed"
    assert "without ever measuring eval/valid/loss" in result[ERROR]


@pytest.mark.parametrize("by", ["tune", "the user"])
def test_a_stop_waits_for_the_checkpoint_of_the_run(make: Make, tmp_path: Path, by: str) -> None:
    saved: list[str] = []

    def run(spec: RunSpec, *, stop: threading.Event) -> Outcome:
        measure(tmp_path, (10, 4.0))
        assert stop.wait(20)
        saved.append("yes")
        return Outcome(tmp_path, 13, 30, reused=False)

    trial = make(run)
    assert trial.step()[STEP] == 10
    if by == "tune":
        trial.cleanup()
    else:
        (tmp_path / STOP_FILE).touch()
        assert trial.step()[STATUS] == "unfinished"
    assert saved == ["yes"]


def test_nothing_is_started_once_the_user_has_stopped(make: Make, tmp_path: Path) -> None:
    def run(spec: RunSpec, *, stop: threading.Event) -> Outcome:
        raise AssertionError("started")

    (tmp_path / STOP_FILE).touch()
    assert make(run).step()[STATUS] == "unfinished"


class TuneTrial:
    """What of a trial of Tune is looked at."""

    def __init__(self, number: int, **last: Any) -> None:
        self.config = {"trial": {"number": number}}
        self.last_result = {STEP: 0, STATUS: "", ERROR: "", **last}


@pytest.mark.parametrize("most", [None, 1])
def test_ends_are_told_once_and_too_many_failures_end_the_sweep(
    tmp_path: Path, most: int | None
) -> None:
    tree = {"name": "s", "base": "b", "space": {"x": {"kind": "choice", "values": [1]}}}
    sweep = from_mapping(SweepSpec, {**tree, "max_failed": most})
    trials = [Trial(number=i, values={"x": i}, spec=spec_of(tmp_path)) for i in range(5)]
    stop, said = threading.Event(), list[str]()
    progress = Progress(sweep, tmp_path, trials, stop, said.append)
    told, stopper = SweepCallback(progress), SweepStopper(stop)

    told.on_trial_start(1, [], TuneTrial(0))
    told.on_trial_result(1, [], TuneTrial(0), {STATUS: "", STEP: 10, VALUE: 2.0})
    for trial in (
        TuneTrial(0, **{STEP: 30}),  # Tune stopped it at its last step
        TuneTrial(1, **{STEP: 10}),
        TuneTrial(2, **{STEP: 10, STATUS: "failed", ERROR: "it broke"}),
    ):
        told.on_trial_complete(1, [], trial)
        told.on_trial_complete(1, [], trial)
    assert not stopper.stop_all()
    told.on_trial_error(1, [], TuneTrial(3))
    assert read_ends(tmp_path) == {
        0: Ended(number=0, status="finished"),
        1: Ended(number=1, status="stopped"),
        2: Ended(number=2, status="failed", error="it broke"),
        3: Ended(number=3, status="failed", error="its driver died"),
    }
    assert stopper.stop_all() == (most is not None)
    assert (tmp_path / STOP_FILE).exists() == (most is not None)
    assert said[:4] == [
        "trial-000 starts: x=0",
        "trial-000 step 10: eval/valid/loss 2.0000",
        "trial-000 finished at step 30",
        "trial-001 stopped by its value at step 10: others are better",
    ]
    # the next call tries those again that failed
    again = Progress(sweep, tmp_path, trials, threading.Event(), said.append)
    assert sorted(again.known) == [0, 1]
