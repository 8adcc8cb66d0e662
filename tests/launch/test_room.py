"""How many workers there is room for, and what is said of a cluster that is too small."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from xtdist.config import ConfigError
from xtdist.launch import room as module
from xtdist.launch.room import NoRoomError, Room
from xtdist.train.spec import WorkersSpec
from xtdist.train.spec.aside import AsideSpec


def room(free: dict[str, float], total: dict[str, float] | None = None, *, gpus: int = 0, **spec):
    """A cluster by the CPUs of its nodes."""

    def cpus(by_node: dict[str, float]) -> dict[str, dict[str, float]]:
        return {node: {"CPU": n, "GPU": 1.0} for node, n in by_node.items()}

    return Room(WorkersSpec(**spec), gpus, lambda: (cpus(free), cpus(total or free)))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 0.02)
    monkeypatch.setattr(module, "POLL_S", 0.01)


def test_workers_are_counted_node_by_node():
    two = room({"a": 3, "b": 3}, {"a": 4, "b": 4}, count=8, cpus=2)
    assert (two.slots().free, two.slots().total, two.slots().nodes) == (2, 4, 2)
    assert room({"a": 8}, count=8, cpus=2, gpus=1).slots().free == 1
    assert room({}, {"a": 2}, count=2).slots().free == 0  # a node that takes all


def test_all_that_are_wanted_start_at_once():
    assert room({"a": 3}, count=2).wait(stop=threading.Event(), say=pytest.fail) == 2


def test_after_a_loss_as_many_as_fit_start_without_waiting():
    """A node that is gone is not in the cluster's total any more."""
    assert room({"a": 1}, count=2, min_count=1).wait(stop=threading.Event(), say=pytest.fail) == 1


@pytest.mark.usefixtures("impatient")
def test_fewer_start_where_other_work_keeps_the_rest():
    busy = room({"a": 1}, {"a": 2}, count=2, min_count=1)
    assert busy.wait(stop=threading.Event(), say=pytest.fail) == 1


@pytest.mark.usefixtures("impatient")
def test_what_is_missing_is_said_and_waited_for_so_long_only():
    said: list[str] = []
    lone = room({"a": 1}, {"a": 2}, count=3, cpus=1, wait_minutes=0.001)
    with pytest.raises(NoRoomError, match="room for 2 more is missing"):
        lone.wait(stop=threading.Event(), say=said.append)
    assert len(said) == 1
    assert "3 workers of 1 CPU are needed and the 1 nodes of the cluster have room for 1" in said[0]
    assert "(other work takes that of 1)" in said[0]


@pytest.mark.usefixtures("impatient")
def test_nodes_that_come_end_the_wait():
    free = {"a": 1.0}
    growing = room(free, count=2)
    threading.Timer(0.1, lambda: free.update(b=1.0)).start()
    assert growing.wait(stop=threading.Event(), say=lambda line: None) == 2


def test_a_stop_ends_the_wait():
    stop = threading.Event()
    stop.set()
    assert room({}, {"a": 1}, count=2).wait(stop=stop, say=pytest.fail) == 0


def test_the_least_is_not_more_than_the_wanted():
    with pytest.raises(ConfigError, match="min_count: got 3, more than count"):
        WorkersSpec(count=2, min_count=3)
    assert (WorkersSpec(count=4).least, WorkersSpec(count=4, min_count=1).least) == (4, 1)


def test_the_task_beside_the_workers_takes_the_place_where_it_costs_least():
    """Nodes of 4 and 3 CPUs; workers of 2: the third CPU of the second node is left over."""
    nodes = {"a": 4.0, "b": 3.0}
    assert with_task(nodes, cpus=2).slots().total == 3
    assert with_task(nodes, cpus=2, task=AsideSpec(cpus=2)).slots().total == 2
    assert with_task(nodes, cpus=2, task=AsideSpec(cpus=5)).slots().total == 0
    assert with_task(nodes, cpus=2, gpus=1, task=AsideSpec(gpus=0.5)).slots().total == 1
    alone = with_task({"a": 1.0}, cpus=1)
    assert "1 workers of 1 CPU beside a task of 1 CPU (loop.aside)" in alone.lack(alone.slots())


def with_task(nodes: dict[str, float], *, cpus: int, gpus: int = 0, task: AsideSpec | None = None):
    return dataclasses.replace(room(nodes, cpus=cpus, gpus=gpus), aside=task or AsideSpec())


def test_a_node_that_is_about_to_be_taken_away_has_no_room(monkeypatch: pytest.MonkeyPatch):
    """Ray still counts it, with what is free on it, and starts nothing there."""
    from ray._private import state

    nodes = {"leaving": {"CPU": 2.0}, "staying": {"CPU": 2.0}}
    monkeypatch.setattr(state, "total_resources_per_node", lambda: nodes)
    monkeypatch.setattr(state, "available_resources_per_node", lambda: nodes)
    monkeypatch.setattr(state.state, "get_draining_nodes", lambda: {"leaving": 0})
    slots = Room(WorkersSpec(count=4), 0).slots()
    assert (slots.free, slots.total, slots.nodes) == (2, 2, 1)
