"""A plain training loop to measure against: the same network, loss, AdamW, clipping and batches,
without Ray, DeepSpeed or any of our loop. With more ranks it is torch's DistributedDataParallel.

    RANK=0 WORLD_SIZE=1 python jobs/benchmarks/train_bare.py job.json
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xtdist.config import derive_seed, from_mapping, to_mapping
from xtdist.data import Loader, open_view
from xtdist.model import build_model
from xtdist.objective import AutoregressiveWrapper
from xtdist.optim import lr_at
from xtdist.train import RunSpec


@dataclass(frozen=True)
class Steps:
    """Seconds and loss of each step; the losses are of all ranks together."""

    seconds: list[float]
    losses: list[float]


def bare_steps(spec: RunSpec, *, world: int, folder: Path) -> Steps:
    """The steps of ``spec`` by ``world`` processes of one thread each, which live only for this."""
    output = folder / f"{spec.name}-bare.json"
    job = {"spec": to_mapping(spec), "output": str(output)}
    path = folder / f"{spec.name}-bare-job.json"
    path.write_text(json.dumps(job))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = [
        subprocess.Popen(
            [sys.executable, __file__, str(path)],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
            },
        )
        for rank in range(world)
    ]
    codes = [process.wait(600) for process in group]
    if any(codes):
        raise RuntimeError(f"the bare loop ended with {codes}")
    return Steps(**json.loads(output.read_text()))


def train(spec: RunSpec, *, rank: int, world: int) -> Steps:
    """All steps of one rank; the process group is there if ``world`` is more than 1."""
    generator = torch.Generator().manual_seed(derive_seed(spec.seed, "init"))
    model: Any = AutoregressiveWrapper(build_model(spec.model, generator=generator))
    optimizer = adamw(spec, model)
    if world > 1:
        model = nn.parallel.DistributedDataParallel(model)
    seconds, losses = [], []
    for step, tokens in enumerate(batches(spec, rank=rank, world=world)):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = lr_at(spec.optim, step, spec.loop.steps)
        loss = model(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), spec.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    if world > 1:
        total = torch.tensor(losses, dtype=torch.float64)
        dist.all_reduce(total)
        losses = (total / world).tolist()
    return Steps(seconds, losses)


def batches(spec: RunSpec, *, rank: int, world: int) -> list[Tensor]:
    """What this rank trains on, all of it in memory: reading costs the bare loop nothing."""
    length, rows = spec.data.seq_len, spec.global_batch
    view = open_view(spec.data, "train", seq_len=length, seed=spec.seed, global_batch=rows)
    with Loader(view, steps=range(spec.loop.steps), rank=rank, world=world) as loader:
        return [batch.tokens.clone() for batch in loader]


def adamw(spec: RunSpec, model: nn.Module) -> torch.optim.AdamW:
    """Torch's fused AdamW; matrices decay, embeddings and vectors don't."""
    optim = spec.optim
    named = dict(model.named_parameters())
    decay = [p for n, p in named.items() if p.ndim == 2 and "embedding" not in n]
    rest = [p for n, p in named.items() if p.ndim != 2 or "embedding" in n]
    groups = [
        {"params": decay, "weight_decay": optim.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def main(path: Path) -> None:
    """One rank's process."""
    torch.set_num_threads(1)
    job = json.loads(path.read_text())
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > 1:
        dist.init_process_group("gloo")
    done = train(from_mapping(RunSpec, job["spec"]), rank=rank, world=world)
    if rank == 0:
        Path(job["output"]).write_text(json.dumps({"seconds": done.seconds, "losses": done.losses}))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
