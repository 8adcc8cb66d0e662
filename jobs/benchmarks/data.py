"""Speed of the data path on one machine, against other readers of tokens.

    OMP_NUM_THREADS=1 python jobs/benchmarks/data.py --section "Data"
    python jobs/benchmarks/data.py --parts reading --readers masked litdata --repeats 3

Reading: windows of 1,025 tokens in random order from a dataset in the page cache, in batches of 32
as ``torch.int64``. Each reader has a process of its own; all take turns, again and again, and
numbers are medians. Rates are for a second of processor time of all the reader's threads, which
other work on the machine disturbs least; ratios are theirs / ours, above 1: ours is faster.
Building: Python sources to a dataset. Opening: very many shards. Waiting: the share of steps of
5 ms that two ranks stand still for their data; the step sleeps, as one on a GPU does, or computes.

Peers that can't be imported are left out, with a note. They are for tests only and need an
environment of their own: ``pip install litdata mosaicml-streaming datasets``. What
mosaicml-streaming left in shared memory is removed, so run nothing else with it at that time.
Everything is made in a temporary folder, 3 GB with all peers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import common
import data_build
import data_peers
import data_steps
from data_corpora import Corpus, write_many_shards, write_text
from data_peers import OURS, READERS

READING = ("reader", "windows per CPU-second", "windows/s", "theirs / ours")
PARTS = ("reading", "building", "opening", "waiting")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything: tokens, processor seconds of a turn, bytes of text, shards, steps."""

    tokens: int = 200_000_000
    shard_tokens: int = 32 * 2**20
    turn_s: float = 1.0
    text_bytes: int = 128_000_000
    build: data_build.Sizes = field(default_factory=data_build.Sizes)
    builds: tuple[data_build.Build, ...] = data_build.BUILDS
    shards: int = 10_000
    steps: int = 2_000
    waits: tuple[data_steps.Wait, ...] = data_steps.WAITS


QUICK = Sizes(
    tokens=300_000,
    shard_tokens=100_000,
    turn_s=0.01,
    text_bytes=1_000_000,
    build=data_build.Sizes(
        vocab_size=400, train_bytes=200_000, unit_bytes=300_000, sample_bytes=200_000
    ),
    builds=data_build.QUICK,
    shards=50,
    steps=20,
    waits=data_steps.WAITS[:1],
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the script."""

    sizes: Sizes
    folder: Path
    context: BaseContext
    repeats: int
    readers: tuple[str, ...]

    def corpus(self) -> Corpus:
        """The tokens of reading and waiting, made once."""
        corpus = Corpus(folder=self.folder / "tokens", tokens=self.sizes.tokens)
        if not corpus.folder.exists():
            corpus.folder.mkdir()
            corpus.write(shard_tokens=self.sizes.shard_tokens)
        return corpus

    def reading(self) -> str:
        """Windows of all readers."""
        turns, missing = data_peers.measure(
            self.readers,
            self.corpus(),
            self.context,
            seconds=self.sizes.turn_s,
            repeats=self.repeats,
        )
        rows = []
        for name, taken in turns.items():
            rate = statistics.median(t.windows / t.cpu for t in taken)
            wall = statistics.median(t.windows / t.wall for t in taken)
            pairs = zip(taken, turns[OURS], strict=True)
            ratio = statistics.median(
                mine.windows / mine.cpu * t.cpu / t.windows for t, mine in pairs
            )
            shown = "-" if name == OURS else f"{ratio:.2f}"
            rows.append([name, f"{rate / 1e3:.1f} k", f"{wall / 1e3:.1f} k", shown])
        rows += [[name, problem, "-", "-"] for name, problem in missing.items()]
        return common.table(READING, rows)

    def building(self) -> str:
        """Text to datasets."""
        text = write_text(self.folder / "text", limit_bytes=self.sizes.text_bytes)
        rows = data_build.lines(
            self.sizes.builds,
            text,
            self.folder,
            sizes=self.sizes.build,
            repeats=max(1, self.repeats // 2),
        )
        what = (
            f"{text.text_bytes / 1e6:.0f} MB of Python sources, {text.documents} documents, sha256 "
            f"{text.sha256[:12]}…; {self.sizes.build.vocab_size} ids at most, units of "
            f"{self.sizes.build.unit_bytes / 1e6:.1f} MB"
        )
        return f"{what}\n\n{common.table(data_build.HEADER, rows)}"

    def opening(self) -> str:
        """A dataset of very many shards."""
        folder = self.folder / "shards"
        write_many_shards(folder, self.sizes.shards)
        rows = data_steps.opening(folder, repeats=self.repeats)
        about = f"{self.sizes.shards} shards"
        return f"{about}\n\n{common.table(data_steps.OPENING, rows)}"

    def waiting(self) -> str:
        """Two ranks at steps of 5 ms."""
        corpus = self.corpus()
        rows = [
            data_steps.waiting(wait, corpus, self.context, steps=self.sizes.steps)
            for wait in self.sizes.waits
        ]
        return common.table(data_steps.WAITING, rows)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--readers", nargs="+", default=[], help="only these beside our own")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does the script run?")
    parser.add_argument("--note", nargs="+", default=[], help="lines above the tables")
    parser.add_argument("--section", default="Data")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "RESULTS.md")
    return parser.parse_args(argv)


def about(args: argparse.Namespace, argv: Sequence[str]) -> list[str]:
    """What stands above the tables."""
    versions = []
    for name in data_peers.PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return [
        f"machine: {common.machine('cpu')}",
        f"against: {', '.join(versions)}",
        f"command: `python jobs/benchmarks/data.py {' '.join(argv)}`",
        *args.note,
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    args = parse(argv)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "pyarrow.parquet", "xtdist.data.loader"])
    names = tuple(n for n in READERS if n == OURS or not args.readers or _named(n, args.readers))
    bodies = []
    with tempfile.TemporaryDirectory(prefix="xtdist-data-") as folder:
        run = Run(
            sizes=QUICK if args.quick else Sizes(),
            folder=Path(folder),
            context=context,
            repeats=args.repeats,
            readers=names,
        )
        for part in args.parts:
            body = f"### {part.capitalize()}\n\n{getattr(run, part)()}"
            print(body, end="\n\n", flush=True)
            bodies.append(body)
    notes = about(args, sys.argv[1:] if argv is None else argv)
    common.write_section(args.output, args.section, about=notes, body="\n\n".join(bodies))


def _named(name: str, words: Sequence[str]) -> bool:
    return any(word in name for word in words)


if __name__ == "__main__":
    main()
