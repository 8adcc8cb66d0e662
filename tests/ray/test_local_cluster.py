"""cluster/local.sh: a cluster of one's own, beside others."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from cluster_tools import Cluster, local_sh, parse_exports

pytestmark = pytest.mark.ray


def processes_naming(folder: str) -> list[int]:
    """Processes with ``folder`` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if folder.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def answers(cluster: Cluster) -> bool:
    token = Path(cluster.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(
        f"{cluster.address}/api/version", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=20) as reply:
        return bool(reply.status == 200)


def test_up_twice_is_the_same_cluster(cluster):
    pid = (cluster.state / "pid").read_text()
    again = local_sh("up", str(cluster.state))
    assert again.returncode == 0
    assert parse_exports(again.stdout) == cluster.env
    assert (cluster.state / "pid").read_text() == pid
    assert local_sh("env", str(cluster.state)).stdout == again.stdout


def test_only_holders_of_the_token_get_in(cluster):
    assert answers(cluster)
    assert Path(cluster.env["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o077 == 0
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{cluster.address}/api/version", timeout=20)
    assert refused.value.code == 401


def test_all_cpus_are_offered_whatever_omp_num_threads_says(tmp_path):
    """GNU nproc obeys OMP_NUM_THREADS, which `make` sets to 1."""
    fake = tmp_path / "ray"
    fake.write_text('#!/bin/sh\necho "$@" >"$FAKE_RAY_ARGUMENTS"\n')
    fake.chmod(0o755)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_BIN": str(fake)}
    env["FAKE_RAY_ARGUMENTS"] = str(tmp_path / "arguments")
    env.pop("XTDIST_CPUS", None)
    script = Path(__file__).resolve().parents[2] / "cluster" / "local.sh"
    out = subprocess.run([script, "up", tmp_path / "s"], env=env, capture_output=True, text=True)
    assert out.returncode == 1
    assert "Ray did not start" in out.stderr
    words = (tmp_path / "arguments").read_text().split()
    assert words[words.index("--num-cpus") + 1] == str(len(os.sched_getaffinity(0)))


def test_down_ends_one_cluster_and_leaves_the_other(cluster, tmp_path):
    up = local_sh("up", str(tmp_path / "second"), cpus=1)
    assert up.returncode == 0, up.stderr
    second = Cluster(tmp_path / "second", parse_exports(up.stdout))
    assert second.address != cluster.address
    assert second.env["RAY_ADDRESS"] != cluster.env["RAY_ADDRESS"]
    assert answers(second)
    folder = (second.state / "tmp").read_text().strip()
    of_one = len(processes_naming(folder))
    join = local_sh("join", str(second.state), cpus=1)
    assert join.returncode == 0, join.stderr
    assert "127.0.0.2 joined" in join.stderr
    assert len(processes_naming(folder)) > of_one > 0
    assert local_sh("down", str(second.state)).returncode == 0
    assert processes_naming(folder) == []
    assert not Path(folder).exists()
    assert answers(cluster)
    assert local_sh("env", str(second.state)).returncode == 1


def test_down_leaves_a_stranger_with_the_same_process_number_alone(tmp_path):
    stranger = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    )
    (tmp_path / "pid").write_text(str(stranger.pid))
    (tmp_path / "tmp").write_text("/tmp/xtdist-ray-gone")
    assert local_sh("down", str(tmp_path)).returncode == 0
    assert stranger.poll() is None
    stranger.communicate(b"\n")
    assert stranger.returncode == 0


def test_nothing_joins_a_cluster_that_is_not_there(tmp_path):
    out = local_sh("join", str(tmp_path))
    assert out.returncode == 1
    assert "no cluster" in out.stderr
    assert list(tmp_path.iterdir()) == []


def test_down_without_a_cluster_is_nothing_to_do(tmp_path):
    assert local_sh("down", str(tmp_path / "never")).returncode == 0
