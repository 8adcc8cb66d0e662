"""What the driver does after each way in which an attempt can end; nothing is started here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import WorkerGroupError

from xtdist.config import CheckpointError, ConfigError, DataError, UserError
from xtdist.launch import driver as module
from xtdist.launch import room
from xtdist.launch.attempts import read_attempts
from xtdist.launch.driver import Driver, TrainingFailedError
from xtdist.train.loop import ERROR_FILE
from xtdist.train.run import STOP_FILE
from xtdist.train.spec import CheckpointSpec, WorkersSpec

Act = Callable[[int], BaseException | None]
DEAD = WorkerGroupError("worker 0 is dead", {0: RuntimeError("dead")})


class Script:
    """A run of 10 steps; ``acts`` are what its attempts do, each given the number of workers."""

    def __init__(self, folder: Path, *acts: Act, **workers: Any) -> None:
        self.folder, self.acts, self.counts = folder, list(acts), []
        self.cluster: dict[str, dict[str, float]] = {"a": {"CPU": 2.0}}
        spec = SimpleNamespace(
            workers=WorkersSpec(**{"count": 2, "wait_minutes": 0.001} | workers),
            loop=SimpleNamespace(steps=10, aside=None),
            checkpoint=CheckpointSpec(),
        )
        plan = SimpleNamespace(spec=spec, folder=folder, gpus_per_worker=0, done_step=0)
        self.lease = SimpleNamespace(lost=False, epoch=3)
        self.driver = Driver(plan, {}, lambda payload: None, self.lease)

    def fit(
        self, plan: Any, payload: Any, worker: Any, *, count: int, over: Any
    ) -> BaseException | None:
        self.counts.append(count)
        return self.acts.pop(0)(count)

    def save(self, step: int) -> None:
        (self.folder / "checkpoints" / f"step_{step:08d}-aaaaaaaa").mkdir(parents=True)

    def run(self) -> Exception | None:
        error = self.driver.run()
        assert not self.acts
        return error


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Script]:
    def make(*acts: Act, **workers: Any) -> Script:
        monkeypatch.setattr(room, "read_cluster", lambda: (made.cluster, made.cluster))
        made = Script(tmp_path, *acts, **workers)
        monkeypatch.setattr(module, "fit", made.fit)
        monkeypatch.setattr(room, "SETTLE_S", 0.02)
        for part in (room, module):
            monkeypatch.setattr(part, "POLL_S", 0.01)
        monkeypatch.setattr(type(made.driver.attempts), "delay_s", 0.0)
        return made

    return make


def kinds(folder: Path) -> list[str]:
    return [row["kind"] for row in read_attempts(folder) if row["event"] == "ended"]


def test_a_run_that_fails_is_started_again_until_it_is_done(script, tmp_path, capsys):
    made = script(lambda n: DEAD, lambda n: DEAD, lambda n: made.save(10))
    assert made.run() is None
    assert (made.counts, kinds(tmp_path)) == ([2, 2, 2], ["error", "error", "done"])
    assert capsys.readouterr().out.count("error: rank 0: RuntimeError: dead; starting again") == 2


def test_it_is_given_up_after_failures_in_a_row_only(script, tmp_path):
    def failing(step: int) -> Act:
        return lambda n: made.save(step) or DEAD if step else DEAD

    made = script(*map(failing, (0, 4, 0, 6, 0, 0)), max_failures=2)
    error = made.run()
    assert isinstance(error, TrainingFailedError)
    assert not isinstance(error, UserError)
    assert "dead" in str(error)
    assert kinds(tmp_path) == ["error"] * 6


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError])
def test_the_workers_own_mistake_ends_the_run_at_once(script, tmp_path, kind):
    def mistaken(count: int) -> BaseException:
        raw = {"kind": kind.__name__, "message": "shard 3 is damaged", "epoch": 3}
        (tmp_path / ERROR_FILE).write_text(json.dumps(raw))
        return DEAD

    error = script(mistaken).run()
    assert type(error) is kind
    assert str(error) == "shard 3 is damaged"


def test_a_mistake_of_an_unknown_kind_is_still_a_mistake(script, tmp_path):
    raw = json.dumps({"kind": "NewError", "message": "m", "epoch": 3})
    assert (
        type(script(lambda n: (tmp_path / ERROR_FILE).write_text(raw) and None).run()) is UserError
    )


def test_a_mistake_of_workers_that_were_fenced_off_is_not_this_runs(script, tmp_path):
    def other(count: int) -> None:
        raw = {"kind": "CheckpointError", "message": "taken over", "epoch": 2}
        (tmp_path / ERROR_FILE).write_text(json.dumps(raw))
        made.save(10)

    made = script(other)
    assert made.run() is None
    assert kinds(tmp_path) == ["done"]


def test_what_an_attempt_leaves_is_not_taken_for_the_next_ones(script, tmp_path):
    for name in (STOP_FILE, ERROR_FILE, "hang.json"):
        (tmp_path / name).write_text("{}")
    made = script(
        lambda n: [p.name for p in tmp_path.iterdir()] == ["attempts.jsonl"] and None,
        lambda n: made.save(10),
    )
    assert made.run() is None
    assert kinds(tmp_path) == ["ended early", "done"]


@pytest.mark.parametrize(("error", "kind"), [(None, "stopped"), (DEAD, "error")])
def test_a_stopped_run_is_not_started_again(script, tmp_path, error, kind):
    def stopped(count: int) -> BaseException | None:
        made.driver.stop.set()
        return error

    made = script(stopped)
    assert made.run() is None
    assert kinds(tmp_path) == [kind]


def test_it_goes_on_smaller_and_grows_when_there_is_room_again(script, tmp_path, capsys):
    def lose(count: int) -> BaseException:
        made.cluster["a"]["CPU"] = 1.0
        return DEAD

    def grow(count: int) -> None:
        made.cluster["a"]["CPU"] = 1.0  # this attempt has the other, once it steps
        room.threading.Event().wait(0.2)
        assert not (tmp_path / STOP_FILE).exists()
        (tmp_path / "metrics.jsonl").write_text("{}")
        for _ in range(500):
            if (tmp_path / STOP_FILE).exists():
                break
            room.threading.Event().wait(0.01)
        made.cluster["a"]["CPU"] = 2.0
        made.save(7)

    made = script(lose, grow, lambda n: made.save(10), min_count=1, grow_after_s=0.05)
    assert made.run() is None
    assert (made.counts, kinds(tmp_path)) == ([2, 1, 2], ["error", "resized", "done"])
    assert "there is room for more workers" in capsys.readouterr().out


def test_nodes_that_do_not_come_end_the_run_in_the_end(script, tmp_path, capsys):
    def lose(count: int) -> BaseException:
        made.cluster["a"]["CPU"] = 1.0
        return DEAD

    made = script(lose)
    error = made.run()
    assert isinstance(error, TrainingFailedError)
    assert "room for 1 more is missing" in str(error)
    assert "waiting" in capsys.readouterr().out


def test_a_run_that_another_process_took_over_is_left_to_it(script, tmp_path):
    def taken(count: int) -> None:
        made.lease.lost = True

    made = script(taken)
    error = made.run()
    assert isinstance(error, TrainingFailedError)
    assert "another process took over" in str(error)
    assert not (tmp_path / STOP_FILE).exists()


def test_workers_that_saved_before_they_were_cut_off_are_no_failure(script, tmp_path):
    made = script(lambda n: made.save(4), lambda n: made.save(10), max_failures=0)
    assert made.run() is None
    assert kinds(tmp_path) == ["preempted", "done"]


def test_a_run_that_ended_because_it_got_no_better_is_done(script, tmp_path):
    def early(count: int) -> None:
        made.save(6)
        row = {"what": "stop", "why": "early_stop", "step": 6, "data_step": 6, "text": "no better"}
        (tmp_path / "interventions.jsonl").write_text(json.dumps(row) + "\n")

    made = script(early)
    assert made.run() is None
    assert kinds(tmp_path) == ["done"]


def test_a_store_that_does_not_answer_ends_no_run(script, tmp_path, monkeypatch):
    def out(count: int) -> BaseException:
        monkeypatch.setattr(module, "newest_step", lambda plan: fail())
        return DEAD

    def fail() -> int:
        raise OSError("503")

    def back(count: int) -> None:
        monkeypatch.setattr(module, "newest_step", lambda plan: 10)

    assert script(out, back).run() is None
    assert kinds(tmp_path) == ["error", "done"]
