"""Runs training jobs in fresh processes that form a gloo group, as Ray's workers would.

``run_ranks`` is for tests. This file is also what the processes execute: each trains the given
jobs one after the other and writes what became of them. Imports cost seconds of CPU, so tests give
many jobs to one group, and the groups of a test process are forked by one that has imported it all.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from xtdist.config import to_mapping
from xtdist.train.spec import RunSpec


@dataclass(frozen=True)
class Outcome:
    """How one job ended on every rank: None, or "ErrorClass: message". ``printed``: all that the
    processes wrote to stdout and stderr."""

    errors: list[str | None]
    printed: str

    @property
    def ok(self) -> bool:
        return self.errors == [None] * len(self.errors)

    @property
    def same_error(self) -> str:
        """The error that every rank ended with."""
        (error,) = set(self.errors)
        assert error is not None
        return error


def run_ranks(
    specs: list[RunSpec], *, patches: dict[int, str] | None = None, timeout_s: float = 240
) -> list[Outcome]:
    """Train ``specs`` in order in one group of processes; all want the same number of workers.

    patches: for the job of that index, the name of a fault in faults.py.
    """
    (world,) = {spec.workers.count for spec in specs}
    jobs = [job_of(spec, (patches or {}).get(i)) for i, spec in enumerate(specs)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "jobs.json").write_text(json.dumps(jobs))
        codes = _fork_ranks(root, world, timeout_s)
        printed = "".join((root / f"log-{rank}").read_text() for rank in range(world))
        assert codes == [0] * world, printed
        results = [json.loads((root / f"result-{rank}").read_text()) for rank in range(world)]
    return [Outcome([r[i] for r in results], printed) for i in range(len(specs))]


_groups = itertools.count()


@functools.cache
def _forker(number: int) -> subprocess.Popen[str]:
    """Waits for ranks to fork until this process ends. There are two: what depends on the order of
    a set, which the seed of hashes sets, differs between ranks, and from one group to the next."""
    return subprocess.Popen(
        [sys.executable, __file__],
        env=environment(0, 1) | {"PYTHONHASHSEED": str(1 + number)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _fork_ranks(root: Path, world: int, timeout_s: float) -> list[int]:
    """The exit codes of the processes of a group."""
    first, end = next(_groups), time.monotonic() + timeout_s
    shares: dict[int, list[int]] = {}
    for rank in range(world):
        shares.setdefault((first + rank) % 2, []).append(rank)
    forkers = {number: _forker(number) for number in shares}
    codes: dict[int, int] = {}
    try:
        for number, ranks in shares.items():
            environments = {rank: environment(rank, world) for rank in ranks}
            _send(forkers[number], [str(root), os.getcwd(), environments])
        for number, ranks in shares.items():
            codes |= zip(ranks, _answer(forkers[number], end - time.monotonic()), strict=True)
    finally:
        if len(codes) < world:
            for forker in forkers.values():
                os.killpg(forker.pid, signal.SIGKILL)
                forker.wait()
            _forker.cache_clear()
    return [codes[rank] for rank in range(world)]


def _send(forker: subprocess.Popen[str], order: Any) -> None:
    assert forker.stdin is not None
    print(json.dumps(order), file=forker.stdin, flush=True)


def _answer(forker: subprocess.Popen[str], timeout_s: float) -> list[int]:
    assert forker.stdout is not None
    assert select.select([forker.stdout], [], [], max(timeout_s, 0.0))[0], "not done in time"
    line = forker.stdout.readline()
    assert line, f"what forks the ranks ended with code {forker.wait()}"
    codes: list[int] = json.loads(line)
    return codes


def job_of(spec: RunSpec, fault: str | None = None) -> dict[str, Any]:
    """What the processes read of one job."""
    folder = str(Path(spec.output) / spec.name)
    payload = {"spec": to_mapping(spec), "folder": folder, "mlflow": None}
    return {"payload": payload, "fault": fault}


def environment(rank: int, world: int) -> dict[str, str]:
    """Of one of the processes."""
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def shards_everything(engine_config: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """Small parameters are cut by ZeRO-3 too: it keeps those of up to 100 000 numbers whole, which
    are all of a tiny model."""

    def config(spec: RunSpec, **keywords: Any) -> dict[str, Any]:
        tree = engine_config(spec, **keywords)
        tree["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return tree

    return config


def _fork_groups() -> Path | None:
    """Fork what stdin asks for. Returns in every child, with the folder of its group, and at the
    end of stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import may say is no answer
    _load()
    for line in sys.stdin:
        root, folder, environments = json.loads(line)
        children = []
        for rank, env in environments.items():
            if (pid := os.fork()) == 0:
                answers.close()
                log = os.open(f"{root}/log-{rank}", os.O_WRONLY | os.O_CREAT)
                for fd, file in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
                    os.dup2(file, fd)
                os.environ.clear()
                os.environ.update(env)
                os.chdir(folder)
                return Path(root)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        print(json.dumps(codes), file=answers, flush=True)
    return None


def _load() -> None:
    """What takes long of what a rank imports."""
    import torch._dynamo  # noqa: F401

    import xtdist.train.loop  # noqa: F401
    from xtdist.train.deepspeed import load_deepspeed

    load_deepspeed(gpu=False)


def _main(root: Path) -> None:
    import torch
    import torch.distributed as dist
    from faults import FAULTS

    from xtdist.config import from_mapping
    from xtdist.train import deepspeed
    from xtdist.train.deepspeed import prepare_process
    from xtdist.train.loop import train
    from xtdist.train.run import WorkerJob

    deepspeed.engine_config = shards_everything(deepspeed.engine_config)
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo",
        init_method=f"file://{root / 'rendezvous'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    prepare_process(gpu=False)
    results: list[str | None] = []
    for job in json.loads((root / "jobs.json").read_text()):
        Path(job["payload"]["folder"]).mkdir(parents=True, exist_ok=True)
        dist.barrier()
        try:
            with FAULTS[job["fault"]](Path(job["payload"]["folder"])):
                train(from_mapping(WorkerJob, job["payload"]))
            results.append(None)
        except Exception as e:
            results.append(f"{type(e).__name__}: {e}")
            if not job["fault"]:
                traceback.print_exc()
    (root / f"result-{rank}").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    if (folder := Path(sys.argv[1]) if sys.argv[1:] else _fork_groups()) is not None:
        _main(folder)
