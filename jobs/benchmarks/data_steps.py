"""What a run feels of its data: how long it takes to open them, and how long steps wait."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Literal

import common
import numpy as np
import torch
from data_corpora import Corpus
from data_peers import config_of

from xtdist.data import Loader, TokenDataset, open_view

OPENING = ("what", "ms", "CPU-ms", "slowest, ms")
WAITING = ("data", "step", "waits, share of the time", "median wait, µs", "99 % of waits, µs")
RANKS = 2
STEP_S = 0.005
WARM_STEPS = 5
Step = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Wait:
    """What two ranks read while their steps sleep, or compute."""

    documents: Literal["joined", "masked", "packed"]
    step: Literal["sleeps", "computes"]
    mixture: bool = False


WAITS = (
    Wait(documents="joined", step="sleeps"),
    Wait(documents="joined", step="sleeps", mixture=True),
    Wait(documents="masked", step="sleeps"),
    Wait(documents="packed", step="sleeps"),
    Wait(documents="joined", step="computes"),
)


def opening(folder: Path, *, repeats: int) -> list[list[str]]:
    """Open a dataset; open it and read a row of every shard, hashed first or not."""

    def touch(verify: Literal["touch", "size"]) -> None:
        dataset = TokenDataset.open(folder, verify=verify)
        count = len(dataset.manifest.splits["train"])
        starts = np.arange(count) * (dataset.total_tokens // count)
        dataset.gather(starts, np.empty((count, 1025), dataset.manifest.dtype))

    steps: dict[str, Step] = {
        "open": lambda: TokenDataset.open(folder),
        "open, read and hash every shard": lambda: touch("touch"),
        "open, read every shard, trust sizes": lambda: touch("size"),
    }
    taken = common.in_turn(steps, device="cpu", repeats=repeats)
    rows = []
    for name, runs in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        slowest = max(run[0] for run in runs)
        rows.append([name, *(f"{1e3 * s:.0f}" for s in (wall, cpu, slowest))])
    return rows


def computation() -> Step:
    """Products of matrices for about the time of a step."""
    a = torch.randn(256, 256)

    def step() -> None:
        end = time.perf_counter() + STEP_S
        while time.perf_counter() < end:
            a.mm(a)

    return step


def rank_waits(
    pipe: Connection, wait: Wait, corpus: Corpus, *, rank: int, steps: int, ready: Barrier
) -> None:
    """The process of one rank: seconds of all steps, and the wait of each."""
    torch.set_num_threads(1)
    config = config_of(corpus, wait.documents, mixture=wait.mixture)
    view = open_view(config, seq_len=corpus.seq_len, seed=1, global_batch=RANKS * corpus.batch)
    for dataset in view.datasets.values():  # hashes all shards
        dataset.will_need(0, dataset.total_tokens)
    step = computation() if wait.step == "computes" else lambda: time.sleep(STEP_S)
    waits, start = [], 0.0
    ready.wait()
    with Loader(view, steps=range(WARM_STEPS + steps), rank=rank, world=RANKS) as loader:
        for batch in loader:
            if batch.step == WARM_STEPS:
                start = time.perf_counter() - batch.wait_s
            if batch.step >= WARM_STEPS:
                waits.append(batch.wait_s)
            step()
    pipe.send((time.perf_counter() - start, waits))


def waiting(wait: Wait, corpus: Corpus, context: BaseContext, *, steps: int) -> list[str]:
    """One row: two ranks, a process each."""
    ready = context.Barrier(RANKS)
    pipes, processes = [], []
    for rank in range(RANKS):
        here, there = context.Pipe(duplex=False)
        process = context.Process(  # type: ignore[attr-defined]
            target=rank_waits,
            args=(there, wait, corpus),
            kwargs={"rank": rank, "steps": steps, "ready": ready},
            daemon=True,
        )
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    found = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    waits = np.array([w for _, several in found for w in several])
    share = waits.sum() / sum(seconds for seconds, _ in found)
    name = wait.documents + (", two corpora" if wait.mixture else "")
    median, most = 1e6 * np.quantile(waits, [0.5, 0.99])
    return [name, wait.step, f"{share:.2%}", f"{median:.0f}", f"{most:.0f}"]
