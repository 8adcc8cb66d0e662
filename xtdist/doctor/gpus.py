"""GPUs as nvidia-smi, and torch in a process of its own, see them."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass

from xtdist.doctor.finding import Finding, amber, green, red
from xtdist.doctor.limited import output_of

LIMIT_S = 60.0
_FIELDS = "name,memory.total,memory.used,ecc.errors.uncorrected.volatile.total,utilization.gpu"
# A process of its own: a driver that hangs must not hang the doctor.
_TORCH = """
import json, torch
nccl = torch.cuda.nccl.version() if torch.version.cuda else ()
print(json.dumps({"cuda": torch.version.cuda, "count": torch.cuda.device_count(),
                  "nccl": ".".join(map(str, nccl))}))
"""


@dataclass(frozen=True)
class Gpu:
    """Megabytes; ``ecc_errors``: uncorrected, since the driver was loaded; None: not counted."""

    name: str
    memory_mb: float
    used_mb: float
    ecc_errors: int | None
    busy: float


@dataclass(frozen=True)
class GpuFacts:
    """``driver_cuda``: the newest CUDA that the driver knows. ``torch_sees``: None: torch did not
    answer in time. ``gpus``: None: there is no nvidia-smi, or it did not answer."""

    gpus: tuple[Gpu, ...] | None
    driver_cuda: str | None
    driver: str | None
    processes: int
    torch_cuda: str | None
    torch_sees: int | None
    nccl: str | None


def read_gpus() -> GpuFacts:
    query = ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    rows = output_of(query, seconds=LIMIT_S)
    head = output_of(["nvidia-smi"], seconds=LIMIT_S) or "" if rows is not None else ""
    apps = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    busy = output_of(apps, seconds=LIMIT_S) or "" if rows is not None else ""
    env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    said = output_of([sys.executable, "-c", _TORCH], seconds=LIMIT_S, env=env)
    torch = json.loads(said.splitlines()[-1]) if said else None
    return GpuFacts(
        gpus=None if rows is None else parse_gpus(rows),
        driver_cuda=_first(r"CUDA Version: *([\d.]+)", head),
        driver=_first(r"Driver Version: *([\d.]+)", head),
        processes=len(busy.split()),
        torch_cuda=torch["cuda"] if torch else None,
        torch_sees=torch["count"] if torch else None,
        nccl=(torch["nccl"] or None) if torch else None,
    )


def parse_gpus(rows: str) -> tuple[Gpu, ...]:
    """Of nvidia-smi's table; ``[N/A]`` is nothing."""
    found = []
    for row in rows.strip().splitlines():
        name, total, used, ecc, busy = (word.strip() for word in row.split(","))
        errors = int(ecc) if ecc.isdigit() else None
        found.append(Gpu(name, _number(total), _number(used), errors, _number(busy) / 100))
    return tuple(found)


def _number(word: str) -> float:
    return float(word) if re.fullmatch(r"[\d.]+", word) else 0.0


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def judge_gpus(f: GpuFacts, *, wanted: int) -> list[Finding]:
    """``wanted``: GPUs that a run is to have on this node at least; 0: none is needed."""
    have = len(f.gpus or ())
    if have < wanted:
        fix = "nvidia-smi -L; fewer GPUs: set workers.count or workers.device=cpu"
        return [red("gpus", f"{have} GPUs, but the run wants {wanted} here", fix)]
    if not have:
        return [green("gpus", "none; runs use the CPU")]
    return [judge_torch(f, have), judge_health(f), *judge_nccl(f)]


def judge_torch(f: GpuFacts, have: int) -> Finding:
    what = f"{have} GPUs, driver {f.driver} (CUDA {f.driver_cuda}); torch has CUDA {f.torch_cuda}"
    wheel = f"cu{(f.driver_cuda or '12.6').replace('.', '')}"
    install = f"pip install torch --index-url https://download.pytorch.org/whl/{wheel}"
    if f.torch_sees is None:
        fix = "dmesg | grep -i -e nvrm -e xid; then drain the node and reboot it"
        return red("gpus", f"torch did not answer in {LIMIT_S:g} s: a driver that hangs?", fix)
    if f.torch_cuda is None:
        return red("gpus", f"{have} GPUs, but torch is built for the CPU", install)
    ours, theirs = _pair(f.torch_cuda), _pair(f.driver_cuda)
    if theirs and ours[:1] > theirs[:1]:
        return red("gpus", f"{what}: the driver is too old for it", install)
    if f.torch_sees < have:
        fix = "unset CUDA_VISIBLE_DEVICES; python -c 'import torch; torch.cuda.init()'"
        return red("gpus", f"{what} and sees {f.torch_sees} of them", fix)
    if theirs and ours > theirs:
        return amber("gpus", f"{what}: newer than the driver's; some kernels may not load")
    return green("gpus", what)


def _pair(version: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in (version or "").split(".")[:2] if part.isdigit())


def judge_health(f: GpuFacts) -> Finding:
    gpus = f.gpus or ()
    broken = [i for i, gpu in enumerate(gpus) if gpu.ecc_errors]
    if broken:
        fix = f"nvidia-smi -q -d ECC -i {broken[0]}; drain the node and reset it: nvidia-smi -r"
        return red("gpu memory", f"uncorrected memory errors on GPU {broken}", fix)
    taken = [i for i, gpu in enumerate(gpus) if gpu.used_mb > 0.05 * gpu.memory_mb]
    if taken or f.processes:
        what = f"{f.processes} processes use GPUs, memory is taken on {taken}"
        return amber("gpu memory", what, "nvidia-smi --query-compute-apps=pid,name --format=csv")
    return green("gpu memory", "free, no uncorrected errors")


def judge_nccl(f: GpuFacts) -> list[Finding]:
    if f.nccl is None:
        fix = "pip install torch with CUDA (its wheel has NCCL)"
        return [red("nccl", "torch has no NCCL, so GPUs can't work together", fix)]
    return [green("nccl", f"version {f.nccl}")]
