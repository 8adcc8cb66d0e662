"""A run to which everything happens ends exactly as the one to which nothing does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from harness import Services, Trouble, open_services
from injections import FAULTS, Planned, play, schedule, steps_for

from xtdist.track.mlflow import metric_history

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(1800)]
SEED = 7
KINDS = [k for k in FAULTS if k != "worker_stopped"] + ["worker_killed"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    opened = open_services(tmp_path_factory.mktemp("chaos"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def plan() -> list[Planned]:
    return schedule(SEED, KINDS)


@pytest.fixture(scope="module")
def twin(world: Services, plan) -> Trouble:
    run = world.trouble("twin", steps=steps_for(plan))
    assert play(run, []) == []
    return run


@pytest.fixture(scope="module")
def troubled(world: Services, twin: Trouble, plan) -> tuple[Trouble, list[str]]:
    run = world.trouble("troubled", steps=twin.steps)
    return run, play(run, plan)


def test_every_fault_happened(troubled):
    run, missed = troubled
    assert not missed, run.log


def test_the_weights_are_those_of_the_twin(troubled, twin):
    assert troubled[0].weights() == twin.weights()


def test_every_step_has_the_loss_of_the_twin(troubled, twin):
    assert troubled[0].losses() == twin.losses()
    assert set(twin.losses()) == set(range(1, twin.steps + 1))


def test_the_tracker_has_every_step(troubled):
    run, _ = troubled
    noted = json.loads((run.folder / "mlflow_run.json").read_text())
    there = metric_history(noted["uri"], noted["run_id"], "train/loss")
    here = {step: next(iter(values)) for step, values in run.losses().items()}
    assert dict(zip(there.steps, there.values, strict=True)) == pytest.approx(here)


def test_a_schedule_follows_from_its_seed():
    assert schedule(1, KINDS) == schedule(1, KINDS) != schedule(2, KINDS)
    assert sorted(f.kind for f in schedule(1, KINDS)) == sorted(KINDS)
