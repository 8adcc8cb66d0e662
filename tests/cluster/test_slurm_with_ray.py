"""cluster/slurm/train.sbatch with a real Ray: head and worker are both on this machine, at
addresses of their own, and a tiny run has a worker on each."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_tools import Slurm, processes_of
from small_demo import make_small_demo

from xtdist.cli.main import main

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]
WORKER = "127.0.0.2"


def free_job() -> tuple[int, int]:
    """A job whose ports are free, and a port for the second node's agent, which on a node of its
    own would be the head's."""
    for job in random.sample(range(3000), 3000):
        ports = [20000 + 4 * job + i for i in range(5)]
        if all(is_free(port) for port in ports):
            return 600_000 + job, ports[-1]
    raise AssertionError("no free ports")


def is_free(port: int) -> bool:
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    make_small_demo(tmp_path)
    configs = tmp_path / "jobs" / "configs"
    data = f"output={tmp_path / 'data' / 'demo'}"
    assert main(["prepare", str(configs / "prepare_demo.yaml"), data]) == 0
    job, agent = free_job()
    made = Slurm(tmp_path, job=job)
    extra = f"--node-ip-address {WORKER} --dashboard-agent-listen-port {agent}"
    made.environment = {"XTDIST_HEAD_IP": "127.0.0.1", "EXTRA_WORKER": extra}
    yield made
    made.end()


def train(slurm: Slurm, *overrides: str) -> int:
    """The job's exit code. Its nodes offer one CPU each, so that two workers have to be on both."""
    words = ("workers.count=2", "workers.placement=spread", *overrides)
    return slurm.run("jobs/configs/demo_ar.yaml", *words, timeout_s=800)


def assert_nothing_is_left(slurm: Slurm) -> None:
    """Slurm itself would kill what a step leaves; here nobody does. The dashboard's helpers notice
    a moment later that it is gone."""
    (child,) = slurm.started
    deadline = time.monotonic() + 30
    while (left := processes_of(child.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == {}
    assert not slurm.state.exists()
    assert not Path(f"/tmp/xtdist-ray-{slurm.job}").exists()


def test_a_run_on_two_nodes_ends_with_its_code_and_leaves_nothing(slurm):
    assert train(slurm) == 0, slurm.log
    assert "2 of 2 nodes" in slurm.log
    assert "step 4 of 4 done" in slurm.log
    assert "it is killed" not in slurm.log
    assert_nothing_is_left(slurm)


def test_the_code_of_a_run_that_fails_is_the_job_s_and_nothing_is_left(slurm):
    assert train(slurm, "optim.lr=1e38") == 2, slurm.log
    assert "2 of 2 nodes" in slurm.log
    assert "error: the loss of step 1 is not finite" in slurm.log  # and not another 2
    assert "it is killed" not in slurm.log
    assert_nothing_is_left(slurm)
