"""How long a run stands still when a worker is killed, or a host loses its power.

From the fault to the end of the next step that the restarted workers finish. Clusters are made as
the tests make theirs (tests/ray), so this needs the whole checkout.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import train_runs as runs
from train_runs import SMALL, Place, Shape

TOOLS = Path(__file__).resolve().parents[2] / "tests" / "ray"
HEADER = ("fault", "times", "seen after, s (p50)", "next step after, s (p50)", "p95", "goal")
WORKER_GOAL_S, HOST_GOAL_S = 15.0, 30.0
WORKER, HOST = "SIGKILL of a worker", "power cut of a host, with a spare one"
WORKERS = 2
WAIT_S = 240.0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """``every``: steps between checkpoints; ``kills``, ``cuts``: repetitions."""

    shape: Shape = SMALL
    every: int = 25
    kills: int = 20
    cuts: int = 8


@dataclass(frozen=True)
class Recovery:
    """Seconds after the fault: until the driver knew that its workers had failed, and until the
    next finished step."""

    seen_s: float
    step_s: float


def quantile(values: list[float], q: float) -> float:
    """Of few values: none that is not among them."""
    return float(np.quantile(values, q, method="higher"))


def row(name: str, found: list[Recovery], goal_s: float) -> list[str]:
    """One row of the table."""
    steps = [each.step_s for each in found]
    last = quantile(steps, 0.95)
    return [
        *(name, str(len(found)), f"{quantile([each.seen_s for each in found], 0.5):.1f}"),
        *(f"{quantile(steps, 0.5):.1f}", f"{last:.1f}"),
        f"p95 at most {goal_s:.0f} s: {'reached' if last <= goal_s else 'MISSED'}",
    ]


@dataclass(frozen=True)
class Job:
    """A running driver. What it prints is read all the time, so that it never waits."""

    process: subprocess.Popen[str]
    folder: Path
    printed: list[str]

    def wait(self, condition: Callable[[], Any], *, what: str) -> None:
        """Poll until ``condition`` holds."""
        until = time.monotonic() + WAIT_S
        while not condition():
            ended = self.process.poll()
            if ended is not None or time.monotonic() > until:
                said = "".join(self.printed[-40:])
                raise RuntimeError(f"no {what}; the driver: {ended}\n{said}")
            time.sleep(0.05)

    def settle(self) -> None:
        """Wait until the newest start of workers has saved a checkpoint and gone on from it."""
        began = runs.attempts(self.folder, "started")[-1]["time"]

        def settled() -> bool:
            root = self.folder / "checkpoints"
            new = [m for m in root.glob("step_*/manifest.json") if _mtime(m) > began]
            return bool(new) and len(self._steps_since(max(map(_mtime, new)))) > 2

        self.wait(settled, what="checkpoint")

    def recovery(self, fault: Callable[[], None]) -> Recovery:
        """Do harm, and wait until it is over."""
        starts = len(runs.attempts(self.folder, "started"))
        at = time.time()
        fault()
        self.wait(
            lambda: len(runs.attempts(self.folder, "started")) > starts, what="start of workers"
        )
        began = runs.attempts(self.folder, "started")[starts]["time"]
        self.wait(lambda: self._steps_since(began), what="step after the fault")
        seen = next(r["time"] for r in runs.attempts(self.folder, "ended") if r["time"] > at)
        return Recovery(seen - at, self._steps_since(began)[0] - at)

    def _steps_since(self, at: float) -> list[float]:
        return [r["time"] for r in runs.records(self.folder) if r["time"] > at]


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # deleted meanwhile
        return 0.0


def watched(process: subprocess.Popen[str], folder: Path) -> Job:
    """``process`` with readers of its two pipes."""
    printed: list[str] = []

    def read(pipe: IO[str]) -> None:
        printed.extend(pipe)

    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        threading.Thread(target=read, args=(pipe,), daemon=True).start()
    return Job(process, folder, printed)


def killed_workers(place: Place, sizes: Sizes, *, rows: int) -> list[Recovery]:
    """SIGKILL of one of two workers on a cluster of one machine, rank 0 and rank 1 in turn."""
    tools = _import("cluster_tools")
    state = place.folder / "cluster"
    up = tools.local_sh("up", str(state), cpus=WORKERS)
    if up.returncode:
        raise RuntimeError(up.stderr)
    try:
        cluster = tools.Cluster(state, tools.parse_exports(up.stdout))
        config = runs.write_config(_tree(place, sizes, "killed", rows=rows), place.folder)
        job = watched(cluster.start("train", str(config)), place.folder / "runs" / "killed")
        with ended(job):
            job.wait(lambda: runs.records(job.folder), what="first step")
            found = []
            for i in range(sizes.kills):
                job.settle()
                victim = sorted(tools.workers_of(cluster))[i % WORKERS]
                found.append(job.recovery(partial(os.kill, victim, signal.SIGKILL)))
                print(f"  kill {i + 1}: {found[-1]}", flush=True)
            return found
    finally:
        tools.local_sh("down", str(state))


def why_no_hosts() -> str | None:
    """Why no host can be cut off here; None if one can."""
    if not (TOOLS / "hosts.py").is_file():
        return "needs the whole checkout (tests/ray)"
    return _import("hosts").why_not()


def cut_hosts(place: Place, sizes: Sizes, *, rows: int) -> list[Recovery]:
    """Power cuts of a host with a worker, in a cluster of a head and three worker hosts of which
    one is idle; after each cut a new spare joins."""
    made = _import("hosts")
    folder = place.folder / "hosts"
    folder.mkdir()
    hosts = made.Hosts(folder)
    try:
        hosts.up(workers=WORKERS + 1)
        tree = _tree(place, sizes, "cut", rows=rows)
        tree["workers"] |= {"placement": "spread"}
        config = runs.write_config(tree, place.folder)
        process = hosts.start(made.HEAD, *made.submit_words(config, hosts.job_server))
        job = watched(process, place.folder / "runs" / "cut")
        with ended(job):
            job.wait(lambda: runs.records(job.folder), what="first step")
            found = []
            for i in range(sizes.cuts):
                job.settle()
                victim = busy_hosts(hosts, but=made.HEAD)[i % WORKERS]
                found.append(job.recovery(partial(hosts.cut, victim)))
                print(f"  cut {i + 1}: {found[-1]}", flush=True)
                hosts.add(made.HEAD + WORKERS + 2 + i)
            return found
    finally:
        hosts.down()


def busy_hosts(hosts: Any, *, but: int) -> list[int]:
    """The numbers of the hosts on which workers run."""
    spaces = {_space(h.pid): number for number, h in hosts.hosts.items() if number != but}
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"TrainWorker" in (entry / "cmdline").read_bytes():
                space = _space(int(entry.name))
                found |= {spaces[space]} if space in spaces else set()
        except OSError:
            continue
    return sorted(found)


def _space(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


@contextlib.contextmanager
def ended(job: Job) -> Iterator[None]:
    """End the driver after the last repetition; its cluster goes down right after."""
    try:
        yield
    finally:
        job.process.kill()
        job.process.wait()


def _tree(place: Place, sizes: Sizes, name: str, *, rows: int) -> dict[str, Any]:
    """A run without an end."""
    tree = place.tree(name, sizes.shape, rows=rows, workers=WORKERS)
    tree["loop"]["steps"] = 10**6
    tree["checkpoint"] = {"every": sizes.every}
    tree["workers"] |= {"wait_minutes": 5}
    return tree


def _import(name: str) -> Any:
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))
    return __import__(name)
