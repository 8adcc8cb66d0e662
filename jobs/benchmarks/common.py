"""What the benchmarks share: two models with the same weights, how to time them against each
other, how to count memory, and the table that the results go into."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], Any]
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison: keywords of x-transformers for the layers, and sizes."""

    name: str
    layers: dict[str, Any]
    wrapper: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 256
    seq_len: int = 1024
    batch: int = 4
    padded: bool = False


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one run of ours and of theirs: medians; ``ratio``: the median over pairs of
    theirs / ours, above 1 = ours is faster. ``cpu_*``: processor time of all threads."""

    ours: float
    theirs: float
    ratio: float
    cpu_ratio: float


def build_pair(case: Case, *, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Ours and theirs, with the same weights."""
    import x_transformers as xt

    from xtdist.model import Decoder, TransformerWrapper
    from xtdist.model.compat_weights import from_x_transformers

    sizes: dict[str, Any] = {"num_tokens": case.vocabulary, "max_seq_len": case.seq_len}
    torch.manual_seed(0)
    theirs = xt.TransformerWrapper(
        **sizes, **case.wrapper, attn_layers=xt.Decoder(**case.layers, verbose=False)
    )
    ours = TransformerWrapper(**sizes, **case.wrapper, attn_layers=Decoder(**case.layers))
    ours.load_state_dict(from_x_transformers(theirs.state_dict(), ours.config))
    return ours.to(device, dtype), theirs.to(device, dtype)


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(step: Step, *, device: str) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(ours: Step, theirs: Step, *, device: str, pairs: int) -> Timing:
    """Run both in turn, ``pairs`` times, the first of a pair changing; one run of each before."""
    ours(), theirs()
    walls: list[tuple[float, float]] = []
    cpus: list[float] = []
    for i in range(pairs):
        order = (ours, theirs) if i % 2 == 0 else (theirs, ours)
        a, b = (timed(step, device=device) for step in order)
        mine, other = (a, b) if i % 2 == 0 else (b, a)
        walls.append((mine[0], other[0]))
        cpus.append(other[1] / max(mine[1], 1e-9))
    return Timing(
        ours=statistics.median(w[0] for w in walls),
        theirs=statistics.median(w[1] for w in walls),
        ratio=statistics.median(w[1] / w[0] for w in walls),
        cpu_ratio=statistics.median(cpus),
    )


def in_turn(
    steps: Mapping[str, Step], *, device: str, repeats: int
) -> dict[str, list[tuple[float, float]]]:
    """Wall and processor seconds of every run of each: all in turn, ``repeats`` times, another one
    first each time."""
    names = list(steps)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for i in range(repeats):
        at = i % max(len(names), 1)
        for name in names[at:] + names[:at]:
            found[name].append(timed(steps[name], device=device))
    return found


def kept_bytes(module: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass: distinct storages of saved tensors,
    parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(kept.values())


def peak_bytes(step: Step, *, device: str) -> int:
    """The most that ``step`` holds at once beyond what stood before it. It runs once before, so
    that gradients have their place already. On CPU: the sum of torch's allocations, in order."""
    step()
    synchronize(device)
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        synchronize(device)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        step()
    assert run.profiler is not None
    results: Any = run.profiler.kineto_results
    moves = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    held = most = 0
    for _, size in sorted(moves, key=lambda move: move[0]):
        held += size
        most = max(most, held)
    return most


@contextmanager
def largest_tensors(found: list[tuple[int, ...]]) -> Iterator[None]:
    """Collect the shapes of all results of operations inside."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            found.extend(tuple(t.shape) for t in tree_leaves(out) if isinstance(t, Tensor))
            return out

    with Watch():
        yield


def square_tables(step: Step, *, seq_len: int) -> bool:
    """Whether any operation makes a table over all pairs of positions."""
    shapes: list[tuple[int, ...]] = []
    with largest_tensors(shapes):
        step()
    sides = (seq_len - 1, seq_len)
    return any(len(s) >= 2 and s[-1] in sides and s[-2] in sides for s in shapes)


def machine(device: str) -> str:
    """What the numbers were taken on."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name()
    else:
        name = f"{_cpu_name()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}, Python {platform.python_version()}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1] if found else platform.processor() or "CPU"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_section(path: Path, name: str, *, about: Sequence[str], body: str) -> None:
    """Put a section into a results file in place of the one with the same name."""
    text = path.read_text() if path.exists() else "# Results\n\nWritten by the scripts beside it.\n"
    notes = "\n".join(f"- {line}" for line in (f"date: {date.today().isoformat()}", *about))
    section = f"## {name}\n\n{notes}\n\n{body}\n"
    parts = re.split(r"(?m)^(?=## )", text)
    at = [i for i, part in enumerate(parts) if part.startswith(f"## {name}\n")]
    if at:
        parts[at[0]] = section
    else:
        parts.append(section)
    path.write_text("\n".join(part.strip("\n") + "\n" for part in parts))
