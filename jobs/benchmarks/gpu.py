"""Every GPU check and GPU benchmark of the project in one run: about 12 minutes on an H100.

    python jobs/benchmarks/gpu.py                       # writes jobs/benchmarks/RESULTS_GPU.md
    python jobs/benchmarks/gpu.py --sections parity decoding
    python jobs/benchmarks/gpu.py --device cpu --quick  # the same code with tiny sizes

Needs torch, einops, jaxtyping, numpy, pydantic and PyYAML; with x-transformers it does more, and
with deepspeed, psutil, pyarrow, rich and safetensors it trains. Nothing is installed or started:
the package is read from the checkout that the script lies in. Ends with 1 when a check fails, 3
when something is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NEEDED = {"torch": "torch", "einops": "einops", "jaxtyping": "jaxtyping", "numpy": "numpy"}
NEEDED |= {"pydantic": "pydantic", "yaml": "pyyaml"}
SECTIONS = (
    "parity",
    "backends",
    "compiled",
    "decoding",
    "batches",
    "decoding speed",
    "throughput",
    "against plain",
    "against x-transformers",
    "training",
    "training, resumed",
    "training, speed",
    "training, memory",
    "sharded",  # last: DeepSpeed replaces torch's linear function
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does the script run?")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="NAME")
    parser.add_argument("--budget", type=float, default=700.0, help="no section starts after s")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS_GPU.md")
    return parser.parse_args(argv)


def sections(args: argparse.Namespace) -> dict[str, Callable[[], Iterator[Any]]]:
    """What each section runs."""
    import gpu_checks as checks
    import gpu_data as data
    import gpu_speed as speed
    import gpu_train as train

    device, quick = args.device, args.quick
    return {
        "parity": lambda: checks.parity(device),
        "backends": lambda: checks.backends(device),
        "compiled": lambda: checks.compiled(device, compiler=speed.compiler(quick=quick)),
        "decoding": lambda: checks.decoding(device, compiles=not quick),
        "batches": lambda: data.batches(device, quick=quick),
        "sharded": lambda: checks.sharded(device),
        "decoding speed": lambda: speed.decoding_speed(device, quick=quick),
        "throughput": lambda: speed.throughput(device, quick=quick),
        "against plain": lambda: speed.against_plain(device, quick=quick),
        "against x-transformers": lambda: speed.against_x_transformers(device, quick=quick),
        "training": lambda: train.trained(device, quick=quick),
        "training, resumed": lambda: train.resumed(device, quick=quick),
        "training, speed": lambda: train.speed(device, quick=quick),
        "training, memory": lambda: train.memory(device, quick=quick),
    }


def run_section(name: str, rows: Callable[[], Iterator[Any]]) -> tuple[list[list[str]], int]:
    """Table rows, and how many checks failed. A section that breaks is a failed check."""
    lines: list[list[str]] = []
    failed = 0
    try:
        for row in rows():
            failed += row.failed
            value = f"**FAILED** {row.value}" if row.failed else row.value
            lines.append([row.name, value.replace("|", "/").replace("\n", " ")])
            print(f"  {name}: {row.name}: {value}", flush=True)
    except Exception as e:
        traceback.print_exc()
        failed += 1
        text = f"{type(e).__name__}: {e}".splitlines()[0][:200].replace("|", "/")
        lines.append(["(the section itself)", f"**FAILED** {text}"])
    return lines, failed


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write; the exit code."""
    args = parse(argv)
    missing = [pip for module, pip in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"missing here: {', '.join(missing)}; install with pip install {' '.join(missing)}")
        return 3
    sys.path[:0] = [str(HERE), str(HERE.parents[1])]
    import common
    import torch

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"--device {args.device}: torch finds no CUDA GPU here; give --device cpu --quick")
        return 3
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    began, total = time.monotonic(), 0
    words = " ".join(sys.argv[1:] if argv is None else argv)
    about = [f"machine: {common.machine(args.device)}", f"command: `gpu.py {words}`"]
    runs = sections(args)
    for name in args.sections:
        spent = time.monotonic() - began
        if spent > args.budget:
            print(f"{name}: not run, {spent:.0f} s are over")
            lines, failed, notes = [["-", "not run: out of time"]], 0, about
        else:
            lines, failed = run_section(name, runs[name])
            took = time.monotonic() - began - spent
            notes = [*about, f"{failed} failed, {took:.0f} s"]
        total += failed
        body = common.table(("what", "result"), lines or [["-", "nothing to run"]])
        common.write_section(args.output, name, about=notes, body=body)
    print(f"{total} checks failed; {time.monotonic() - began:.0f} s; written to {args.output}")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
