"""Several hosts on one Linux machine, for tests that need to cut one off.

A host is a process in network, process, mount, host name and IPC namespaces of its own: an address,
a process table, a /dev/shm and a /tmp/ray that are its own; the other folders are the machine's, as
on a cluster with a shared disk. Its network cable ends at a bridge that is in a namespace too, so
nothing of the machine's own network is touched. Ending the first process of a host ends all of it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
TOOLS = ("ip", "unshare", "nsenter", "mount")
NET = "10.83.0"
HEAD = 1
# A host that went silent is given up after about 6 s; Ray waits for most of a minute.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
FOREIGN = ("RAY_", "GLOO_", "NCCL_", "MLFLOW_", "COVERAGE")


def why_not() -> str | None:
    """What this machine lacks; None if hosts can be made here."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (iproute2, util-linux)"
    if os.geteuid():
        return "needs root, to make network namespaces"
    probe = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True)
    return None if probe.returncode == 0 else "namespaces can't be made here"


@dataclass
class Host:
    """``number`` is the last part of its address; ``pid`` of its first process."""

    number: int
    holder: subprocess.Popen[bytes]
    pid: int

    @property
    def address(self) -> str:
        return f"{NET}.{self.number}"


@dataclass
class Hosts:
    """A Ray cluster: a head without CPUs and worker hosts of one CPU each. ``folder`` keeps the
    token and what each host has for itself."""

    folder: Path
    hosts: dict[int, Host] = field(default_factory=dict)
    switch: Host | None = None

    @property
    def token(self) -> Path:
        return self.folder / "token"

    @property
    def job_server(self) -> str:
        return f"http://{NET}.{HEAD}:8265"

    def up(self, workers: int) -> None:
        self.token.touch(mode=0o600)
        self.token.write_text(secrets.token_hex(32))
        self.switch = _start(0, "--net")
        for words in ("link add br0 type bridge", "link set br0 up"):
            _enter(self.switch, "ip", *words.split())
        self._make(HEAD)
        self._ray(HEAD, "--head", "--port=6379", "--num-cpus=0", "--dashboard-port=8265",
                  f"--dashboard-host={NET}.{HEAD}")  # fmt: skip
        for number in range(HEAD + 1, HEAD + 1 + workers):
            self.add(number)

    def add(self, number: int) -> None:
        """A worker host joins."""
        self._make(number)
        self._ray(number, f"--address={NET}.{HEAD}:6379", "--num-cpus=1")

    def cut(self, number: int) -> None:
        """Its power goes: first the others hear nothing any more, then its processes are gone."""
        assert self.switch is not None
        _enter(self.switch, "ip", "link", "set", f"port{number}", "down")
        self._end(self.hosts.pop(number))

    def down(self) -> None:
        for number in list(self.hosts):
            self._end(self.hosts.pop(number))
        if self.switch is not None:
            self._end(self.switch)

    def start(self, number: int, *command: str) -> subprocess.Popen[str]:
        """``command`` on a host, its output piped."""
        return subprocess.Popen(
            [*_into(self.hosts[number]), *command],
            env=self._environment(),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _make(self, number: int) -> None:
        assert self.switch is not None
        flags = ("--net", "--mount", "--uts", "--ipc", "--pid", "--mount-proc")
        host = self.hosts[number] = _start(number, *flags)
        own = self.folder / f"host-{number}"
        (own / "ray").mkdir(parents=True)
        name = f"host{number}"
        (own / "hosts").write_text(f"127.0.0.1 localhost\n{host.address} {name}\n")
        port = f"port{number}"
        cable = ("type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        _enter(self.switch, "ip", "link", "add", port, *cable)
        _enter(self.switch, "ip", "link", "set", port, "master", "br0", "up")
        Path("/tmp/ray").mkdir(exist_ok=True)
        for words in (
            "ip link set lo up",
            f"ip addr add {host.address}/24 dev eth0",
            "ip link set eth0 up",
            f"hostname {name}",
            f"mount --bind {own / 'ray'} /tmp/ray",
            f"mount --bind {own / 'hosts'} /etc/hosts",
            "mount -t tmpfs -o size=256m tmpfs /dev/shm",
        ):
            _enter(host, *words.split())

    def _ray(self, number: int, *words: str) -> None:
        address = f"--node-ip-address={self.hosts[number].address}"
        common = (address, "--object-store-memory=80000000", "--disable-usage-stats")
        child = self.start(number, str(BIN / "ray"), "start", *words, *common)
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, out + err

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        return (
            kept
            | HEALTH
            | {
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(self.token),
                "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
                "OMP_NUM_THREADS": "1",
            }
        )

    def _end(self, host: Host) -> None:
        host.holder.kill()  # the kernel ends what it holds (--kill-child)
        host.holder.wait()
        while Path(f"/proc/{host.pid}").exists():
            time.sleep(0.02)


def _start(number: int, *namespaces: str) -> Host:
    """The first process of a host, which does nothing but be there."""
    command = ["unshare", *namespaces, "--fork", "--kill-child", "sleep", "infinity"]
    holder = subprocess.Popen(command, start_new_session=True)
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
    for _ in range(500):
        pids = children.read_text().split()
        if pids and Path(f"/proc/{pids[0]}/comm").read_text() == "sleep\n":
            return Host(number, holder, int(pids[0]))
        time.sleep(0.01)
    holder.kill()
    raise AssertionError("a host did not start")


def _into(host: Host) -> list[str]:
    return [
        "nsenter",
        "--target",
        str(host.pid),
        *(f"--{n}" for n in ("net", "mount", "uts", "ipc", "pid")),
    ]


def _enter(host: Host, *command: str) -> None:
    done = subprocess.run([*_into(host), *command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def losses_of(folder: Path) -> dict[int, set[float]]:
    """Every loss that a run recorded for a step."""
    found: dict[int, set[float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "train/loss" in record:
            found.setdefault(record["step"], set()).add(record["train/loss"])
    return found


def submit_words(config: Path, address: str) -> Sequence[str]:
    """``xtdist train CONFIG --submit ADDRESS``"""
    return (sys.executable, "-m", "xtdist.cli.main", "train", str(config), "--submit", address)
