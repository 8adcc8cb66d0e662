"""What the ranks tell each other now and then: who is slow, whose memory is short."""

from __future__ import annotations

import math
import os
import socket
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from xtdist.track import StragglerConfig
from xtdist.train.meters.phases import Lap, Phase

# CPU: waiting for others shows as ``reduce``, so all else of a step is the rank's own.
OWN_CPU: tuple[Phase, ...] = ("data", "forward", "backward", "optimizer", "rest")
# CUDA: the backward pass and the update also hold waits for other ranks' gradients.
OWN_CUDA: tuple[Phase, ...] = ("data", "forward")


def own_seconds(lap: Lap, *, cuda: bool, zero_stage: int) -> float | None:
    """What a rank itself took, without its waits for others. None where that can't be told: on
    CUDA under ZeRO-3, whose forward pass waits for the others' weights."""
    if cuda and zero_stage == 3:
        return None
    return sum(lap.shown.get(name, 0.0) for name in (OWN_CUDA if cuda else OWN_CPU))


@dataclass(frozen=True)
class Slowest:
    """The rank that took longest, and its time as a multiple of the others' median."""

    rank: int
    ratio: float
    seconds: float
    median: float


def slowest_of(seconds: Sequence[float]) -> Slowest | None:
    """Of each rank's own seconds; None for a single rank, or times of nothing."""
    if len(seconds) < 2:
        return None
    rank = max(range(len(seconds)), key=lambda i: seconds[i])
    median = statistics.median([s for i, s in enumerate(seconds) if i != rank])
    return Slowest(rank, seconds[rank] / median, seconds[rank], median) if median > 0 else None


class Stragglers:
    """Names a rank that stays slow: one line when it has been the slowest, by more than ``ratio``,
    for ``windows`` windows, and again only after it was not."""

    def __init__(self, config: StragglerConfig, hosts: Sequence[str]) -> None:
        self._config, self._hosts = config, hosts
        self._late: deque[int] = deque(maxlen=config.windows)
        self._named: int | None = None

    def judge(self, slowest: Slowest | None) -> str | None:
        """A warning, or None."""
        if slowest is None or slowest.ratio <= self._config.ratio:
            self._late.clear()
            self._named = None
            return None
        self._late.append(slowest.rank)
        steady = len(self._late) == self._config.windows and len(set(self._late)) == 1
        if not steady or self._named == slowest.rank:
            return None
        self._named = slowest.rank
        return (
            f"rank {slowest.rank} on {self._hosts[slowest.rank]} is slow: its own work took "
            f"{slowest.seconds:.3f} s a step, {slowest.ratio:.1f} times the other ranks' median "
            f"({slowest.median:.3f} s), for {self._config.windows} windows of "
            f"{self._config.every} steps; all ranks wait for it. Look at that host's load, "
            "clocks and data path"
        )


def gathered_hosts() -> list[str]:
    """Each rank's host. Collective."""
    hosts = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    return hosts


def gather(values: Sequence[float], device: torch.device) -> list[list[float]]:
    """Each rank's ``values``, by one small all-gather. Collective."""
    mine = torch.tensor(values, dtype=torch.float64, device=device)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    return torch.stack(every).tolist()


def host_state() -> dict[str, float]:
    """This process's resident memory in GB, and of its host the share of memory in use and the load
    by core; nan for what the system does not tell."""
    found = dict.fromkeys(("perf/rss_gb", "perf/host_memory_share", "perf/host_load"), math.nan)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found["perf/rss_gb"] = pages * os.sysconf("SC_PAGE_SIZE") / 1e9
        rows = dict(row.split(":") for row in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(rows[k].split()[0]) for k in ("MemTotal", "MemAvailable"))
        found["perf/host_memory_share"] = 1 - free / total
        found["perf/host_load"] = os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, ValueError, KeyError, IndexError):
        pass
    return found


def device_memory(device: torch.device) -> dict[str, float]:
    """The most that this process has held on its GPU, in GB; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "perf/cuda_allocated_gb": torch.cuda.max_memory_allocated(device) / 1e9,
        "perf/cuda_reserved_gb": torch.cuda.max_memory_reserved(device) / 1e9,
    }
