"""One all-reduce, each rank a process of its own that ends in time whatever happens."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from xtdist.doctor.finding import Finding, green, red
from xtdist.doctor.limited import output_of

LIMIT_S = 90.0
_RANK = """
import datetime, json, os, torch, torch.distributed as dist
backend = os.environ["DOCTOR_BACKEND"]
dist.init_process_group(backend, timeout=datetime.timedelta(seconds=60))
device = "cuda" if backend == "nccl" else "cpu"
x = torch.full((2 ** 20,), 2.0 ** dist.get_rank(), device=device, dtype=torch.float64)
dist.all_reduce(x)
right = bool((x == 2.0 ** dist.get_world_size() - 1).all())
print(json.dumps({"right": right}), flush=True)
dist.barrier()
os._exit(0)
"""


@dataclass(frozen=True)
class Rank:
    """``gpu``: its index on the node; None: gloo on the CPU. ``interface``: to talk over."""

    rank: int
    world: int
    address: str
    port: int
    gpu: int | None = None
    interface: str | None = None


def run_rank(rank: Rank, env: Mapping[str, str]) -> bool | None:
    """Whether the sum was right; None: it did not come to one."""
    backend = "gloo" if rank.gpu is None else "nccl"
    own = {
        **{k: v for k, v in env.items() if k != "CUDA_VISIBLE_DEVICES"},
        "DOCTOR_BACKEND": backend,
        "RANK": str(rank.rank),
        "WORLD_SIZE": str(rank.world),
        "MASTER_ADDR": rank.address,
        "MASTER_PORT": str(rank.port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "" if rank.gpu is None else str(rank.gpu),
    }
    if rank.interface is not None:
        own |= {"GLOO_SOCKET_IFNAME": rank.interface, "NCCL_SOCKET_IFNAME": rank.interface}
    said = output_of([sys.executable, "-c", _RANK], seconds=LIMIT_S, env=own)
    if not said:
        return None
    return bool(json.loads(said.splitlines()[-1])["right"])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


def reduce_here(world: int, *, gpus: bool) -> dict[str, bool | None]:
    """Between the GPUs of this machine, or between so many processes on its CPU."""
    port = free_port()
    ranks = [Rank(r, world, "127.0.0.1", port, r if gpus else None) for r in range(world)]
    with ThreadPoolExecutor(world) as pool:
        outcomes = list(pool.map(lambda rank: run_rank(rank, os.environ), ranks))
    return {f"rank {i}": outcome for i, outcome in enumerate(outcomes)}


def judge_reduce(check: str, outcomes: Mapping[str, bool | None]) -> Finding:
    """``outcomes``: of each rank, by its name."""
    wrong = [name for name, right in outcomes.items() if right is False]
    silent = [name for name, right in outcomes.items() if right is None]
    if wrong:
        fix = "dmesg | grep -i xid; take the node out of the cluster; NCCL_P2P_DISABLE=1 to compare"
        return red(check, f"the sum is WRONG on {', '.join(wrong)}", fix)
    if silent:
        fix = (
            "NCCL_DEBUG=INFO, or GLOO_SOCKET_IFNAME/NCCL_SOCKET_IFNAME=<interface>; open all ports"
        )
        what = f"no sum in {LIMIT_S:g} s on {', '.join(silent)}: they can't reach each other"
        return red(check, what, f"export {fix}")
    return green(check, f"{len(outcomes)} ranks have the right sum")
