"""Serving under load, next to the engine without HTTP and to other servers of the same weights.

    OMP_NUM_THREADS=1 python jobs/benchmarks/serve.py --section Serving
    python jobs/benchmarks/serve.py --servers engine haproxy --parts streams --repeats 5

Every server is a process of its own with one torch thread; one is up at a time, but all take turns,
``--repeats`` times, and numbers are medians. Clients are open loop: a request leaves at its time,
whether or not others are answered, and its latencies count from then. All decode greedily. A rate
is the tokens of all requests by the time from the first arrival to the last token, prompts
included. CPU-ms are those of the server's process and all that it started, for one token. The load
of the machine is noted; with other work on it only the ratios and CPU-ms mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import common
import decode_peers
import serve_load
import serve_parts
import serve_peers
from decode_peers import Shape
from serve_load import Result, Summary, load

_END_S = 60.0
ENGINE, PEERS = "engine", ("plain", "transformers")
NAMES = {
    "engine": "the engine, no HTTP",
    "ours": "xtdist, uvicorn alone",
    "ray": "xtdist, Ray Serve",
    "haproxy": "xtdist, Ray Serve, HAProxy",
    "plain": "x-transformers, FastAPI",
    "transformers": "transformers, continuous batching",
}
STREAMS, QUICK_STREAMS = (1, 8, 32), (1, 4)
SMALL = Shape(dim=32, depth=2, heads=2, inner=96, vocabulary=512, longest=512)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Tokens of a prompt and of its answer; seconds of the parts that last."""

    prompt: int = 64
    new: int = 64
    seconds: float = 20.0
    storm_s: float = 60.0  # long beside one answer: what is unfinished at its end does not count
    recovery_s: float = 20.0
    many: int = 200  # connections that drip
    rounds: int = 12  # of clients that take their time


QUICK = Sizes(prompt=8, new=8, seconds=1.0, storm_s=1.0, recovery_s=1.0, many=8, rounds=2)


class Server:
    """A server that is up."""

    def __init__(self, kind: str, process: subprocess.Popen[str], url: str) -> None:
        self.kind = kind
        self.url = url
        self.key = None if kind in (ENGINE, *PEERS) else serve_peers.KEY
        self._process = process

    def run(self, due: Sequence[float], bodies: Sequence[dict[str, Any]]) -> list[Result]:
        """The results of requests."""
        if self.kind != ENGINE:
            return asyncio.run(load(self.url, due, bodies, key=self.key))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([due, bodies]), file=self._process.stdin, flush=True)
        return [Result(**r) for r in json.loads(self._process.stdout.readline())]

    def processes(self) -> list[int]:
        """It and all that it has started."""
        parents: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
        found = [self._process.pid]
        for pid in found:
            found += parents.get(pid, [])
        return found

    def cpu_s(self) -> float:
        """Processor seconds of all its processes so far."""
        ticks = 0
        for pid in self.processes():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        """Of the largest of its processes: the replica."""
        sizes = [0]
        for pid in self.processes():
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:
                continue
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
        return max(sizes) / common.MIB


@contextmanager
def server(kind: str, folder: Path, shape: Shape) -> Iterator[Server]:
    """Start one and wait until it answers; RuntimeError when it does not."""
    script = str(Path(serve_peers.__file__))
    command = [sys.executable, script, kind, str(folder), json.dumps(asdict(shape))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    log = (folder / f"{kind}.log").open("a")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=log, text=True) as it:
        assert it.stdin is not None
        assert it.stdout is not None
        try:
            lines = iter(it.stdout.readline, "")
            url = next((x for x in lines if x.startswith(("http://", "ready"))), None)
            if url is None:
                last = (folder / f"{kind}.log").read_text().strip().splitlines()[-1:]
                raise RuntimeError(f"{kind} did not start: {' '.join(last)}")
            yield Server(kind, it, url.strip())
        finally:
            it.stdin.close()
            try:
                it.wait(_END_S)
            except subprocess.TimeoutExpired:
                it.kill()


def body(number: int, sizes: Sizes, shape: Shape, **more: Any) -> dict[str, Any]:
    """Request ``number``: a prompt of its own, so that none is cached."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(300, shape.vocabulary - 8, (sizes.prompt,), generator=generator).tolist()
    asked = {"model": "m", "prompt": ids, "max_tokens": sizes.new, "ignore_eos": True}
    stream = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    return {**asked, **stream, **more}


def prepare(folder: Path, shape: Shape) -> Shape:
    """Weights, tokenizer and key for all servers; the shape with the tokenizer's vocabulary."""
    from xtdist.checkpoint.weights import WeightsConfig, save_weights
    from xtdist.config import from_mapping, to_mapping
    from xtdist.data.tokenizer import train_bpe

    sources = sorted(Path(common.__file__).parents[2].glob("xtdist/**/*.py"))
    tokenizer = train_bpe((p.read_text() for p in sources), shape.vocabulary)
    tokenizer.save(folder / "tokenizer.json")
    shape = replace(shape, vocabulary=tokenizer.vocab_size)
    ours, theirs = decode_peers.pair(shape)
    made = {"model": to_mapping(ours.config), "objective": {"kind": "autoregressive"}, "meta": {}}
    save_weights(
        folder / "weights",
        ours.state_dict(),
        from_mapping(WeightsConfig, made),
        tokenizer=folder / "tokenizer.json",
    )
    torch.save(theirs.state_dict(), folder / "theirs.pt")
    digest = hashlib.sha256(serve_peers.KEY.encode()).hexdigest()
    (folder / "keys").write_text(f"bench sha256:{digest}\n")
    return shape


def measure(it: Server, streams: int, sizes: Sizes, shape: Shape) -> tuple[Summary, float]:
    """So many streams that begin together, and CPU-ms per token."""
    it.run([0.0], [body(10**6, sizes, shape)])
    cpu = it.cpu_s()
    results = it.run([0.0] * streams, [body(i, sizes, shape) for i in range(streams)])
    tokens = sum(r.tokens for r in results if r.good)
    if tokens != streams * sizes.new:
        raise RuntimeError(f"{it.kind}: {tokens} tokens, not {streams * sizes.new}")
    return Summary.of(results), 1e3 * (it.cpu_s() - cpu) / tokens


Found = dict[tuple[int, str], list[tuple[Summary, float]]]


def streams_table(found: Found) -> str:
    """Lines by number of streams and server; the ratio is the median over pairs of one run."""
    lines = []
    for (streams, kind), runs in found.items():
        middle = serve_load.median_of([s for s, _ in runs])
        base = found.get((streams, ENGINE), [])
        pairs = [
            mine.rate / theirs.rate for (mine, _), (theirs, _) in zip(runs, base, strict=False)
        ]
        lines.append(
            [
                str(streams),
                NAMES[kind],
                f"{middle.rate:.0f}",
                f"{statistics.median(pairs):.2f}" if pairs else "-",
                *(f"{x:.0f}" for x in middle.first),
                *(f"{x:.1f}" for x in middle.between),
                f"{statistics.median(cpu for _, cpu in runs):.2f}",
            ]
        )
    header = ("streams", "server", "tokens/s", "of the engine's", "first token p50, ms", "p99")
    return common.table((*header, "between p50, ms", "p99", "CPU-ms per token"), lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--servers", nargs="+", default=list(NAMES), choices=list(NAMES))
    parts = ("streams", *serve_parts.PARTS)
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts)
    parser.add_argument("--on", default="haproxy", choices=("ours", "ray", "haproxy"))
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does the script run?")
    parser.add_argument("--section", default="Serving, CPU, fp32, 1 thread")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "RESULTS.md")
    return parser.parse_args(argv)


def streams_part(args: argparse.Namespace, folder: Path, shape: Shape, sizes: Sizes) -> str:
    """Every server in turn, again and again. A peer that does not run is left out, and said."""
    counts = QUICK_STREAMS if args.quick else STREAMS
    found: Found = {(n, kind): [] for n in counts for kind in args.servers}
    notes = []
    for _ in range(args.repeats):
        for kind in list(args.servers):
            try:
                with server(kind, folder, shape) as it:
                    for n in counts:
                        found[n, kind].append(measure(it, n, sizes, shape))
            except RuntimeError as e:
                if kind not in PEERS:
                    raise
                notes.append(f"\n{NAMES[kind]}: left out ({e})")
                args.servers.remove(kind)
    found = {key: runs for key, runs in found.items() if len(runs) == args.repeats}
    return "\n".join([f"### Streams\n\n{streams_table(found)}", *notes])


def about(args: argparse.Namespace, words: Sequence[str], shape: Shape, sizes: Sizes) -> list[str]:
    """What stands above the tables."""
    names = ("ray", "uvicorn", "x-transformers", "transformers")
    return [
        f"machine: {common.machine('cpu')}; load average {os.getloadavg()[0]:.1f}",
        "against: " + ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names),
        f"model: dim {shape.dim}, depth {shape.depth}, heads {shape.heads}, feed-forward "
        f"{shape.inner}, vocabulary {shape.vocabulary}; prompts of {sizes.prompt} tokens, "
        f"{sizes.new} new ones",
        f"command: `python jobs/benchmarks/serve.py {' '.join(words)}`",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    words = sys.argv[1:] if argv is None else argv
    torch.set_num_threads(1)
    sizes, shape = (QUICK, SMALL) if args.quick else (Sizes(), Shape())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = prepare(folder, shape)
        notes = about(args, words, shape, sizes)
        parts = []
        if "streams" in args.parts:
            parts.append(streams_part(args, folder, shape, sizes))
        rest = [p for p in serve_parts.PARTS if p in args.parts]
        if rest:
            with server(args.on, folder, shape) as it:
                it.run([0.0], [body(0, sizes, shape)])
                bench = serve_parts.Bench(
                    it, sizes, lambda i, **more: body(i, sizes, shape, **more)
                )
                parts += [serve_parts.PARTS[p](bench) for p in rest]
            parts.append(f"The last {len(rest)} parts: {NAMES[args.on]}.")
    clients = f"the clients took {time.process_time():.0f} CPU-s"
    notes.append(f"load average at the end: {os.getloadavg()[0]:.1f}; {clients}")
    common.write_section(args.output, args.section, about=notes, body="\n\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
