"""A run on several hosts of which one is cut off. Its losses are those of an undisturbed run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_tools import Result, finish, steps_done, wait_until
from hosts import HEAD, Hosts, losses_of, submit_words, why_not

from xtdist.checkpoint import CheckpointStore

STEPS = 60
pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    running = Hosts(tmp_path_factory.mktemp("hosts"))
    try:
        running.up(workers=2)
        yield running
    finally:
        running.down()


@pytest.fixture(scope="module")
def configs(make_config) -> tuple[Path, Path]:
    changes = {
        "loop.steps": STEPS,
        "loop.valid_every": 0,
        "checkpoint.every": 10,
        "workers.placement": "spread",
        "workers.wait_minutes": 10,
    }
    return make_config("undisturbed", changes), make_config("cut", changes)


def submit(hosts: Hosts, config: Path):
    return hosts.start(HEAD, *submit_words(config, hosts.job_server))


@pytest.fixture(scope="module")
def undisturbed(hosts: Hosts, configs) -> Path:
    result = finish(submit(hosts, configs[0]))
    assert result.code == 0, result.out + result.err
    return configs[0].parent / "runs" / "undisturbed"


@pytest.fixture(scope="module")
def cut(hosts: Hosts, configs, undisturbed) -> tuple[Path, Result]:
    """A host is cut off in the middle; another one joins when the run waits for it."""
    folder = configs[1].parent / "runs" / "cut"
    child = submit(hosts, configs[1])
    wait_until(lambda: len(steps_done(folder)) >= 15, child=child)
    hosts.cut(3)
    began, done = time.monotonic(), len(steps_done(folder))
    hosts.add(4)
    wait_until(lambda: len(steps_done(folder)) > done + 1, child=child)
    print(f"from the cut to the next steps: {time.monotonic() - began:.1f} s")
    return folder, finish(child)


def test_a_run_outlives_one_of_its_hosts(cut):
    folder, result = cut
    assert result.code == 0, result.out + result.err
    assert f"step {STEPS} of {STEPS} done" in result.out
    assert "Traceback" not in result.out
    newest = CheckpointStore(folder / "checkpoints").newest_valid()
    assert newest is not None
    assert newest.step == STEPS


def test_the_loss_of_the_host_is_told_and_noted(cut):
    folder, result = cut
    rows = [json.loads(line) for line in (folder / "attempts.jsonl").open()]
    ends = [row["kind"] for row in rows if row["event"] == "ended"]
    assert "node lost" in ends, result.out
    assert ends[-1] == "done"
    assert {row["workers"] for row in rows if row["event"] == "started"} == {2}
    assert "its node on 10.83.0.3 died" in result.out
    assert "failures: " in result.out


def test_every_loss_is_that_of_the_undisturbed_run(cut, undisturbed):
    there, here = losses_of(undisturbed), losses_of(cut[0])
    assert set(there) == set(range(1, STEPS + 1))
    assert here == there
