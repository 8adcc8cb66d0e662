"""Runs models on slices of sequences in processes that form a gloo group, and compares what comes
out, and the gradients, with what each process computes of the whole sequences alone.

``run_slices`` is for tests. This file is also what the processes execute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ranks import environment


def run_slices(trees: list[dict[str, Any]], *, world: int) -> dict[int, str]:
    """By the number of the model in ``trees``, what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "models.json").write_text(json.dumps(trees))
        group = [
            subprocess.Popen(
                [sys.executable, __file__, str(root)], env=environment(rank, world), text=True
            )
            for rank in range(world)
        ]
        try:
            codes = [process.wait(300) for process in group]
        finally:
            for process in group:
                process.kill()
        assert codes == [0] * world
        found = json.loads((root / "wrong.json").read_text())
    return {int(number): text for number, text in found.items()}


def _main(root: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rendezvous = f"file://{root / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    wrong = {}
    for number, tree in enumerate(json.loads((root / "models.json").read_text())):
        text = _difference(tree, world)
        if text:
            wrong[number] = text
    if rank == 0:
        (root / "wrong.json").write_text(json.dumps(wrong))
    dist.barrier()
    dist.destroy_process_group()


def _difference(tree: dict[str, Any], world: int) -> str:
    import torch
    import torch.distributed as dist

    from xtdist.config import from_mapping
    from xtdist.model import ModelConfig, build_model
    from xtdist.objective import Prepared
    from xtdist.train.sequence import sequence_group, sliced

    config = from_mapping(ModelConfig, tree)
    generator = torch.Generator().manual_seed(0)
    net = build_model(config, generator=generator)
    for parameter in net.parameters():  # nothing is at a zero that would hide an error
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    b, n = 2, 24
    x = torch.randint(0, config.num_tokens, (b, n), generator=generator)
    weight = torch.randn(b, n, config.dim, generator=generator)
    keys = torch.rand(b, n, generator=generator) > 0.1
    keys[:, 0] = True

    def run(part: Prepared, weight: torch.Tensor) -> list[torch.Tensor]:
        net.zero_grad()
        given = {} if part.positions is None else {"pos": part.positions}
        hidden = net.run(part.inputs, self_attn_kv_mask=part.keys, **given).hidden
        (hidden * weight).sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
        return [hidden.detach(), *grads]

    whole = Prepared(
        inputs=x, targets=x, weights=keys.float(), counts=torch.ones(b),
        sample_ids=torch.arange(b), keys=keys,
    )  # fmt: skip
    want = run(whole, weight)
    if not torch.equal(want[0], run(whole, weight)[0]):
        return "draws"
    group = sequence_group(world)
    assert group is not None
    with sliced(net, group):
        got = run(whole.slice_of(group.rank, world), weight.chunk(world, dim=1)[group.rank])
    parts = [torch.empty_like(got[0]) for _ in range(world)]
    dist.all_gather(parts, got[0])
    got[0] = torch.cat(parts, dim=1)
    for grad in got[1:]:
        dist.all_reduce(grad)
    names = ["hidden", *(name for name, _ in net.named_parameters())]
    for name, a, b_ in zip(names, got, want, strict=True):
        error = float((a - b_).abs().max() / b_.abs().max().clamp_min(1e-3))
        if not error < 1e-3:  # of sums that nearly cancel
            return f"{name}: off by {error:.2g}"
    return ""


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
