"""A local cluster through cluster/local.sh, and ``xtdist`` as a user runs it on one."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "cluster" / "local.sh"
RAY = Path(sys.executable).parent / "ray"
# What a cluster of another test, or of the shell that runs the tests, would leave here.
FOREIGN = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")


def local_sh(*words: str, cpus: int = 2) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in FOREIGN}
    env |= {"RAY_BIN": str(RAY), "XTDIST_CPUS": str(cpus)}
    env["RAY_worker_niceness"] = "0"  # else everything else on the machine comes first
    return subprocess.run(
        [str(SCRIPT), *words], env=env, capture_output=True, text=True, timeout=180, cwd=ROOT
    )


def parse_exports(text: str) -> dict[str, str]:
    """What a shell would have in its environment after ``eval``."""
    words = shlex.split(text.replace("export ", ""))
    return dict(word.split("=", 1) for word in words)


@dataclass(frozen=True)
class Cluster:
    """``state``: folder of local.sh; ``env``: what it printed."""

    state: Path
    env: dict[str, str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.env["RAY_API_SERVER_ADDRESS"]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """``xtdist WORDS`` with a process group of its own, as a shell gives it."""
        child = subprocess.Popen(
            [sys.executable, "-m", "xtdist.cli.main", *words],
            env={k: v for k, v in os.environ.items() if k not in FOREIGN} | self.env,
            cwd=self.state,  # not the source tree: paths must not depend on it
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell's background job ignores SIGINT, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )
        self.processes.append(child)
        return child

    def xtdist(self, *words: str, timeout_s: float = 500) -> Result:
        return finish(self.start(*words), timeout_s=timeout_s)


@dataclass(frozen=True)
class Result:
    """How a command ended. ``seconds``: of :func:`finish`'s wait."""

    code: int
    out: str
    err: str
    seconds: float


def finish(child: subprocess.Popen[str], *, timeout_s: float = 500) -> Result:
    start = time.monotonic()
    try:
        out, err = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
        raise AssertionError(f"not done in {timeout_s:.0f} s:\n{out}\n{err}") from None
    return Result(child.returncode, out, err, time.monotonic() - start)


def steps_done(folder: Path) -> list[int]:
    """Steps in a run's metrics.jsonl, in the order in which they were done."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [r["step"] for r in records if "train/loss" in r]


def wait_until(
    condition: Callable[[], bool], *, child: subprocess.Popen[str], timeout_s: float = 400
) -> None:
    """Poll ``condition`` while ``child`` runs."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            out, err = child.communicate()
            raise AssertionError(f"it did not come to that:\n{out}\n{err}")
        time.sleep(0.05)


def workers_of(cluster: Cluster) -> list[int]:
    """Process ids of the cluster's training workers."""
    session = int((cluster.state / "pid").read_text())
    found = []
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes()
            if b"TrainWorker" in title and os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found
