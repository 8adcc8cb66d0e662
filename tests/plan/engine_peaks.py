"""Measures what real engines need: the most bytes of tensors in a step, one process of a group.

``measure`` is for tests; this file is also what the processes execute.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys

from xtdist.config import from_mapping, to_mapping
from xtdist.train.spec import RunSpec


def measure(specs: list[RunSpec], *, world: int, timeout_s: float = 400) -> list[int]:
    """The peaks of rank 0 in the third step of each, in one group of ``world`` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = json.dumps([to_mapping(spec) for spec in specs])
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
    try:
        printed, _ = group[0].communicate(timeout=timeout_s)
        codes = [process.wait(60) for process in group]
    finally:
        for process in group:
            process.kill()
    assert codes == [0] * world, printed
    return list(json.loads(printed.splitlines()[-1]))


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
        del net
        gc.collect()
        for step in range(3):
            live.reset()
            rows = split.micro_batch * split.accumulation
            tokens = torch.randint(0, vocabulary - 1, (rows, spec.data.seq_len + 1))
            prepared = objective.prepare(tokens, seed=step, sample_ids=torch.arange(rows))
            for i in range(split.accumulation):
                engine.set_gradient_accumulation_boundary(i == split.accumulation - 1)
                part = slice(i * split.micro_batch, (i + 1) * split.micro_batch)
                loss, *rest = engine(prepared[part])
                engine.backward(loss / 1000, scale_wrt_gas=False)
                del loss, rest
            engine.step()
    engine.destroy()
    return live.peak


def _main(specs: list[RunSpec]) -> None:
    import torch.distributed as dist

    from xtdist.train.deepspeed import prepare_process

    prepare_process(gpu=False)
    peaks = [_peak(spec) for spec in specs]
    dist.barrier()
    print(json.dumps(peaks))


if __name__ == "__main__":
    _main([from_mapping(RunSpec, tree) for tree in json.loads(sys.argv[1])])
