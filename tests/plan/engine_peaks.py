"""Measures what real engines need: the most bytes of tensors in a step, one process of a group.

``measure`` is for tests; this file is also what the processes execute. Of masked prediction, whose
steps differ, the step is measured that masks the most of all steps of the run.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from xtdist.config import from_mapping, to_mapping
from xtdist.train.spec import RunSpec


def measure(specs: list[RunSpec], *, world: int, timeout_s: float = 550) -> list[int]:
    """The peaks of rank 0 in the third step of each, in one group of ``world`` processes."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as words:
        json.dump([to_mapping(spec) for spec in specs], words)
        words.flush()
        group = _start(words.name, world=world)
        try:
            printed, _ = group[0].communicate(timeout=timeout_s)
            codes = [process.wait(60) for process in group]
        finally:
            for process in group:
                process.kill()
    assert codes == [0] * world, printed
    return list(json.loads(printed.splitlines()[-1]))


def _start(words: str, *, world: int) -> list[subprocess.Popen[str]]:
    """The processes, of which the first prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = []
    for rank in range(world):
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        out = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        command = [sys.executable, __file__, words]
        group.append(subprocess.Popen(command, env=env, stdout=out, text=True))
    return group


def _peak(spec: RunSpec) -> int:
    import torch
    import torch.distributed as dist

    from xtdist.model.wrapper import build_model
    from xtdist.objective import build_objective
    from xtdist.train.deepspeed import build_engine
    from xtdist.train.live import LiveBytes
    from xtdist.train.step import TrainModule

    split, vocabulary = spec.split(dist.get_world_size()), spec.model.num_tokens
    live = LiveBytes()
    with live:
        generator = torch.Generator().manual_seed(0)
        net = build_model(spec.model, generator=generator)
        objective = build_objective(spec.objective, net, mask_id=vocabulary - 1, pad_id=0)
        engine = build_engine(spec, TrainModule(objective), split=split, device=torch.device("cpu"))
        averages = _averages(engine) if spec.optim.ema is not None else []
        del net
        gc.collect()
        for step in _steps(spec, objective):
            live.reset()
            prepared = _batch(spec, objective, step)
            for i in range(split.accumulation):
                engine.set_gradient_accumulation_boundary(i == split.accumulation - 1)
                part = slice(i * split.micro_batch, (i + 1) * split.micro_batch)
                loss, *rest = engine(prepared[part])
                engine.backward(loss / 1000, scale_wrt_gas=False)
                del loss, rest
            engine.step()
            _average(engine, averages)
    engine.destroy()
    return live.peak


def _batch(spec: RunSpec, objective: Any, step: int) -> Any:
    """Of rank 0 in this step."""
    import torch
    import torch.distributed as dist

    rows = spec.split(dist.get_world_size()).share
    generator = torch.Generator().manual_seed(step)
    shape = (rows, spec.data.seq_len + 1)
    tokens = torch.randint(0, spec.model.num_tokens - 1, shape, generator=generator)
    return objective.prepare(tokens, seed=step, sample_ids=torch.arange(rows))


def _steps(spec: RunSpec, objective: Any) -> list[int]:
    """Two, after which all is there that stays, and the one that is measured."""
    import torch.distributed as dist

    if spec.objective.kind == "autoregressive":
        return [0, 1, 2]
    size = spec.split(dist.get_world_size()).micro_batch

    def masked(step: int) -> int:
        rows = (_batch(spec, objective, step).weights > 0).sum(1)
        return max(int(part.sum()) for part in rows.split(size))

    return [0, 1, max(range(spec.loop.steps), key=masked)]


def _averages(engine: Any) -> list[Any]:
    """As the callback of ``optim.ema`` begins them."""
    from xtdist.train.state import flats
    from xtdist.train.state.shards import MASTER

    return [flat.tensors()[MASTER].float().clone() for flat in flats(engine)]


def _average(engine: Any, averages: list[Any]) -> None:
    """As it goes on."""
    import torch

    from xtdist.train.state import flats
    from xtdist.train.state.shards import MASTER

    with torch.no_grad():
        for flat, average in zip(flats(engine), averages, strict=False):
            average.lerp_(flat.tensors()[MASTER], 0.1)


def _main(specs: list[RunSpec]) -> None:
    import torch.distributed as dist

    from xtdist.train.deepspeed import prepare_process

    prepare_process(gpu=False)
    peaks = [_peak(spec) for spec in specs]
    dist.barrier()
    print(json.dumps(peaks))


if __name__ == "__main__":
    _main([from_mapping(RunSpec, tree) for tree in json.loads(Path(sys.argv[1]).read_text())])
