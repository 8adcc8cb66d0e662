"""Addresses at which there is no cluster, and one that is started here. (More: tests/ray.)"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from xtdist.config import ResourceError
from xtdist.connect import connect


@pytest.fixture
def no_ray(monkeypatch):
    """Ray itself would try for minutes."""
    import ray

    monkeypatch.setattr(ray, "init", lambda *a, **k: pytest.fail("it asked Ray"))


@pytest.fixture
def closed_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        yield s.getsockname()[1]


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "no-such-host.invalid"])
def test_nothing_at_the_address_is_said_at_once(closed_port, host):
    with pytest.raises(ResourceError, match=f"no Ray cluster at {host}:{closed_port}: nothing"):
        connect(f"{host}:{closed_port}")


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("port", [0, 70000, 10**30])
def test_a_port_that_does_not_exist_is_a_users_mistake(port):
    with pytest.raises(ResourceError, match="no Ray cluster at"):
        connect(f"127.0.0.1:{port}")


@pytest.mark.usefixtures("no_ray")
def test_the_environment_names_the_cluster(closed_port, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(ResourceError, match="check RAY_ADDRESS, or unset it"):
        connect()


def test_an_address_that_is_none_is_a_users_mistake():
    with pytest.raises(ResourceError, match="no Ray cluster at nonsense"):
        connect("nonsense")


HAD_ONE = """
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
ray.shutdown()
assert connect()
assert "RAY_AUTH_TOKEN" not in os.environ
"""
HAD_NONE = """
assert connect()
assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
assert not (Path.home() / ".ray" / "auth_token").exists()
"""


@pytest.mark.ray
@pytest.mark.parametrize("before", [HAD_ONE, HAD_NONE], ids=["had a cluster", "had none"])
def test_a_process_that_has_imported_ray_gets_a_cluster_with_one_token(before, tmp_path):
    """Ray keeps the token that it has read, which the new cluster must have as well; it is not
    made to write one to the disk."""
    script = f"""
import os
import ray
from pathlib import Path
from xtdist.connect import connect, disconnect
{before}
print(ray.get(ray.remote(lambda: "answered").remote()))
disconnect()
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"HOME": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1] == "answered"
