"""Decoding speed on one CPU thread, against other libraries with the same weights.

    OMP_NUM_THREADS=1 python jobs/benchmarks/decode.py --section "Decoding, CPU, fp32, 1 thread"
    python jobs/benchmarks/decode.py --rows "batch 1" int8 --repeats 3

Greedy tokens (and the best beam) are compared before anything is timed. All engines of a row run in
turn, again and again; numbers are medians. CPU-ms are processor time of the whole process for one
step, the prompt's share included, which other work on the machine disturbs least; ratios are
theirs / ours, above 1: ours is faster, against our plain and against our compiled steps. The limit
of a step is the time to read every weight and all cached keys and values once, at the bandwidth
that is measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import common
import decode_peers
from decode_peers import COMPILED, OURS, Engines, Peer, Shape, Tokens

FP32, INT8 = 4, 1
HEADER = (
    "row",
    "engine",
    "CPU-ms per step",
    "tokens/s",
    "of the limit",
    "theirs / ours",
    "theirs / compiled",
    "tokens",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is measured: so many prompts of so many tokens, continued by ``new``; ``kind`` says by
    whom. ``first``: tokens whose time is taken off again, so that the prompt's does not count."""

    name: str
    kind: str = "plain"
    batch: int = 1
    beams: int = 1
    prompt: int = 64
    new: int = 256
    first: int = 0

    def limit_ms(self, shape: Shape, bandwidth: float) -> float:
        """The least time of a step, in milliseconds, at ``bandwidth`` bytes/s."""
        weights = shape.touched * (INT8 if self.kind == "int8" else FP32)
        cached = self.batch * self.beams * (self.prompt + (self.first + self.new) / 2)
        kept = cached * shape.kept * FP32
        if self.kind == "contrastive":
            head = shape.vocabulary * shape.dim
            weights, kept = weights + FP32 * (shape.touched + head) // 2, kept * 1.5
        return 1e3 * (weights + kept) / bandwidth


ROWS = (
    Row(name="batch 1"),
    Row(name="batch 8", batch=8),
    Row(name="beam 4", beams=4),
    Row(name="contrastive", kind="contrastive"),
    Row(name="int8, batch 1", kind="int8"),
    Row(name="int8, batch 8", kind="int8", batch=8),
    *(Row(name=f"long: {n}", prompt=n, first=1, new=33) for n in (256, 512, 1024, 2048, 4096)),
)
QUICK = (
    Row(name="batch 1", prompt=8, new=8),
    Row(name="beam 4", beams=4, prompt=8, new=8),
    Row(name="contrastive", kind="contrastive", prompt=8, new=8),
    Row(name="int8, batch 2", kind="int8", batch=2, prompt=8, new=8),
    Row(name="long: 24", prompt=24, first=1, new=5),
)
SMALL = Shape(dim=32, depth=2, heads=2, inner=96, vocabulary=256, longest=64)


def bandwidth(*, quick: bool) -> float:
    """Bytes per second of reading a tensor far larger than the caches: the best of several."""
    big = torch.ones((2**20 if quick else 2**28) // FP32)
    seconds = min(common.timed(big.sum, device="cpu")[1] for _ in range(3 if quick else 9))
    return big.numel() * FP32 / max(seconds, 1e-9)


def prompts_of(row: Row, shape: Shape) -> Tokens:
    """Random prompts, the same for all."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, shape.vocabulary, (row.batch, row.prompt), generator=generator)
    return ids.tolist()


def taking_part(row: Row, engines: Engines) -> Mapping[str, Peer]:
    """Who is measured in a row."""
    peers: Mapping[str, Peer] = getattr(engines, row.kind)
    return peers


def measure(row: Row, engines: Engines, shape: Shape, *, repeats: int, rate: float) -> list[Any]:
    """The lines of one row."""
    peers, prompts = taking_part(row, engines), prompts_of(row, shape)
    found = {name: run(prompts, row.new, beams=row.beams) for name, run in peers.items()}
    same = [name for name in peers if name != OURS and found[name] == found[OURS]]
    if row.kind != "int8":  # two ways to quantise: other tokens
        decode_peers.agree(found, peers=list(peers))
    steps: dict[str, Callable[[], Any]] = {
        name: partial(run, prompts, row.new, beams=row.beams) for name, run in peers.items()
    }
    starts: dict[str, Callable[[], Any]] = {}
    if row.first:
        starts = {n: partial(run, prompts, row.first) for n, run in peers.items()}
    taken = common.in_turn(steps, device="cpu", repeats=repeats)
    begun = common.in_turn(starts, device="cpu", repeats=repeats)
    count = row.new - row.first
    limit, lines = row.limit_ms(shape, rate), []
    costs = {name: _per_step(taken[name], begun.get(name), count) for name in peers}
    for name, runs in costs.items():
        wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        ratios = [
            statistics.median(theirs[1] / mine[1] for theirs, mine in zip(runs, own, strict=True))
            for own in (costs[OURS], costs.get(COMPILED, costs[OURS]))
        ]
        lines.append(
            [
                row.name,
                name,
                f"{1e3 * cpu:.2f}",
                f"{row.batch / wall:.0f}",
                f"{limit / (1e3 * cpu):.0%}",
                "-" if name == OURS else f"{ratios[0]:.3g}",
                "-" if name in (OURS, COMPILED) else f"{ratios[1]:.3g}",
                "ours" if name == OURS else "the same" if name in same else "others",
            ]
        )
    return lines


def _per_step(
    taken: Sequence[tuple[float, float]], begun: Sequence[tuple[float, float]] | None, count: int
) -> list[tuple[float, float]]:
    """Wall and processor seconds of a step, for each repetition; never nothing."""
    begun = begun or [(0.0, 0.0)] * len(taken)
    pairs = zip(taken, begun, strict=True)
    return [tuple(max(t - b, 1e-9) / count for t, b in zip(*pair, strict=True)) for pair in pairs]  # type: ignore[misc]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rows", nargs="+", default=[], help="only rows with one of these words")
    parser.add_argument("--engines", nargs="+", default=[], help="only these beside our own")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does the script run?")
    parser.add_argument("--section", default="Decoding, CPU, fp32, 1 thread")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "RESULTS.md")
    return parser.parse_args(argv)


def about(args: argparse.Namespace, argv: Sequence[str], rate: float) -> list[str]:
    """What stands above the table."""
    packages = ("x-transformers", "transformers", "ctranslate2")
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in packages
        if decode_peers.has(name.replace("-", "_"))
    ]
    shape = SMALL if args.quick else Shape()
    return [
        f"machine: {common.machine('cpu')}",
        f"against: {', '.join(versions)}",
        f"model: dim {shape.dim}, depth {shape.depth}, heads {shape.heads}, feed-forward "
        f"{shape.inner}, vocabulary {shape.vocabulary}; {shape.touched * FP32 / common.MIB:.0f} "
        "MiB of fp32 weights are read in a step",
        f"streaming bandwidth: {rate / 1e9:.1f} GB/s",
        f"command: `python jobs/benchmarks/decode.py {' '.join(argv)}`",
    ]


def only(engines: Engines, names: Sequence[str]) -> Engines:
    """Ours and those with one of ``names``."""
    if not names:
        return engines

    def chosen(peers: dict[str, Peer]) -> dict[str, Peer]:
        return {n: p for n, p in peers.items() if n == OURS or any(w in n for w in names)}

    parts = (engines.plain, engines.contrastive, engines.int8)
    return Engines(*(chosen(part) for part in parts))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    args = parse(argv)
    torch.set_num_threads(1)
    shape, rows = (SMALL, QUICK) if args.quick else (Shape(), ROWS)
    rows = tuple(r for r in rows if not args.rows or any(w in r.name for w in args.rows))
    rate = bandwidth(quick=args.quick)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        engines = only(decode_peers.build(shape, Path(folder)), args.engines)
        for row in rows:
            found = measure(row, engines, shape, repeats=args.repeats, rate=rate)
            for line in found:
                print("  ".join(line), flush=True)
            lines += found
    notes = about(args, sys.argv[1:] if argv is None else argv, rate)
    common.write_section(args.output, args.section, about=notes, body=common.table(HEADER, lines))


if __name__ == "__main__":
    main()
