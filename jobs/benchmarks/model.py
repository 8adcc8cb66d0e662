"""Speed and memory of our model against x-transformers: same config, same weights, same process.

    python jobs/benchmarks/model.py --section "CPU, fp32" --pairs 5
    python jobs/benchmarks/model.py --device cuda --dtype bf16 --compile --section "CUDA, bf16"

Each section of ``RESULTS.md`` is the table of one command; a second run replaces it. Ratios are
theirs / ours for time (above 1: ours is faster) and ours / theirs for memory (below 1: less).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import common
from common import MIB, Case

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LLAMA = {"use_rmsnorm": True, "ff_glu": True, "ff_swish": True, "ff_no_bias": True}
SIZES: dict[str, dict[str, Any]] = {
    "base": {"dim": 512, "depth": 6, "heads": 8},
    "125m": {"dim": 768, "depth": 12, "heads": 12},
    "quick": {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flash": {"attn_flash": True},
    "rotary": {"rotary_pos_emb": True},
    "rotary flash": {"rotary_pos_emb": True, "attn_flash": True},
    "gqa flash": {"attn_kv_heads": 2, "attn_flash": True},
    "alibi": {"alibi_pos_bias": True},
    "alibi flash": {"alibi_pos_bias": True, "attn_flash": True},
    "llama flash": {"rotary_pos_emb": True, "attn_flash": True, "attn_kv_heads": 2, **LLAMA},
}
PADDED = ("plain", "flash", "rotary flash")
LARGE = ("flash", "llama flash")
"""Also measured with a padding mask; also with a vocabulary of 32 thousand."""


def cases(size: str) -> list[Case]:
    """Everything that is compared at one size."""
    shape: dict[str, Any] = {"seq_len": 1024, "batch": 4}
    large = 32_000
    if size == "quick":
        shape, large = {"seq_len": 48, "batch": 2}, 1000
    found: list[Case] = []

    def add(option: str, note: str = "", **given: Any) -> None:
        layers = {**SIZES[size], **OPTIONS[option]}
        if layers.get("attn_kv_heads") and layers["heads"] % layers["attn_kv_heads"]:
            layers["attn_kv_heads"] = 1
        found.append(Case(name=f"{size}: {option}{note}", layers=layers, **{**shape, **given}))

    for option in OPTIONS:
        add(option)
    for option in PADDED:
        add(option, ", padding mask", padded=True)
    for option in LARGE:
        add(option, f", vocabulary {large}", vocabulary=large)
    return found


class Side:
    """A model in a training step and in a forward pass."""

    def __init__(self, net: nn.Module, wrapper: type[nn.Module], *, compiled: bool) -> None:
        self.net, self.training = net, wrapper(net)
        self.forward: Callable[..., Tensor] = torch.compile(net) if compiled else net
        self.loss: Callable[..., Tensor] = self.training
        if compiled:
            self.loss = torch.compile(self.training)

    def step(self, tokens: Tensor, given: dict[str, Any]) -> None:
        """Loss and gradients."""
        for parameter in self.net.parameters():
            parameter.grad = None
        self.loss(tokens, **given).backward()

    def accumulate(self, tokens: Tensor, given: dict[str, Any]) -> None:
        """Loss and gradients, added to those that are there."""
        self.loss(tokens, **given).backward()

    @torch.no_grad()
    def infer(self, tokens: Tensor, given: dict[str, Any]) -> Tensor:
        """Logits."""
        return self.forward(tokens, **given)


def peak(side: Side, tokens: Tensor, given: dict[str, Any], *, device: str) -> int:
    """Bytes that a training step holds at its worst moment."""
    return common.peak_bytes(lambda: side.accumulate(tokens, given), device=device)


def keep(side: Side, tokens: Tensor, given: dict[str, Any]) -> int:
    """Bytes that a forward pass keeps for its backward pass."""
    return common.kept_bytes(side.training, lambda: side.training(tokens, **given))


def masks(case: Case, *, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Further inputs of a network for all tokens, and for all but the last."""
    if not case.padded:
        return {}, {}
    n = case.seq_len
    real = torch.arange(n) < torch.linspace(n // 2, n, case.batch)[:, None]
    return {"mask": real.to(device)}, {"mask": real[:, :-1].to(device)}


def mib(size: int) -> str:
    """A number of bytes for the table."""
    return f"{size / MIB:.0f}" if size >= 10 * MIB else f"{size / MIB:.2f}"


def measure(case: Case, args: argparse.Namespace) -> list[str]:
    """One row of the table."""
    import x_transformers as xt

    from xtdist.objective import AutoregressiveWrapper

    if args.threads:
        torch.set_num_threads(args.threads)
    device, compiled = args.device, args.compile
    mine, other = common.build_pair(case, device=device, dtype=DTYPES[args.dtype])
    ours = Side(mine, AutoregressiveWrapper, compiled=compiled)
    theirs = Side(other, xt.AutoregressiveWrapper, compiled=compiled)
    n = case.seq_len
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, case.vocabulary, (case.batch, n), generator=generator).to(device)
    full, short = masks(case, device=device)

    run = {"device": device, "pairs": args.pairs}
    forward = common.compare(lambda: ours.infer(x, full), lambda: theirs.infer(x, full), **run)
    train = common.compare(lambda: ours.step(x, short), lambda: theirs.step(x, full), **run)
    both = ((ours, short), (theirs, full))
    peaks = [peak(side, x, given, device=device) for side, given in both]
    kept, square = ["-", "-"], "-"
    if not compiled:
        held = [keep(side, x, given) for side, given in both]
        kept = [mib(held[0]), f"{held[0] / held[1]:.2f}"]
        square = "yes" if common.square_tables(lambda: ours.step(x, short), seq_len=n) else "no"
    return [
        case.name,
        f"{1e3 * forward.ours:.0f}",
        f"{forward.ratio:.2f}",
        f"{1e3 * train.ours:.0f}",
        f"{train.ratio:.2f}",
        f"{train.cpu_ratio:.2f}",
        *kept,
        mib(peaks[0]),
        f"{peaks[0] / peaks[1]:.2f}",
        square,
    ]


def measure_apart(case: Case, args: argparse.Namespace) -> list[str]:
    """One row, measured in a process of its own: no row meets the heap that another one left."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, case, args).result()


HEADER = (
    "config",
    "forward, ms",
    "time ratio",
    "loss + gradients, ms",
    "time ratio",
    "CPU time ratio",
    "kept for backward, MiB",
    "memory ratio",
    "peak, MiB",
    "memory ratio",
    "n × n tables",
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["base"], metavar="SIZE")
    parser.add_argument(
        "--configs",
        nargs="+",
        default=[],
        metavar="WORD",
        help="only rows with one of these in their name",
    )
    parser.add_argument("--pairs", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--batch", type=int, help="sequences at once (default: 4)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--compile", action="store_true", help="compile both by torch.compile")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does the script run?")
    parser.add_argument("--section", help="the section's name (default: device and type)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    args = parser.parse_args(argv)
    if args.quick:
        args.sizes, args.pairs = ["quick"], 1
    mode = ", compiled" if args.compile else ""
    args.section = args.section or f"{args.device}, {args.dtype}{mode}"
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write the section."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    chosen = [case for size in args.sizes for case in cases(size)]
    chosen = [c for c in chosen if not args.configs or any(w in c.name for w in args.configs)]
    if not chosen:
        print(f"no config matches {' '.join(args.configs)}; words of: {', '.join(OPTIONS)}")
        return 2
    words = " ".join(sys.argv[1:] if argv is None else argv)
    about = [
        f"machine: {common.machine(args.device)}",
        f"against: x-transformers {importlib.metadata.version('x-transformers')}",
        f"command: `python jobs/benchmarks/model.py {words}`",
    ]
    rows: list[list[str]] = []
    for case in chosen:
        if args.batch:
            case = Case(**{**vars(case), "batch": args.batch})
        rows.append(measure_apart(case, args))
        print(common.table(HEADER, rows[-1:]).splitlines()[-1], flush=True)
        body = common.table(HEADER, rows)  # row by row: a run that is killed leaves what it has
        common.write_section(args.output, args.section, about=about, body=body)
    print(f"written to {args.output}, section {args.section!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
