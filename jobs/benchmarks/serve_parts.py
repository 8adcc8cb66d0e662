"""What one server of ours is put through: mixed traffic, ten times too many requests, and clients
that take their time."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common
import serve_load
from serve_load import Result, Summary, load, metric, poisson

WIDTH = 32  # sequences that the engine runs at once
OVERLOAD = 10
_PROBE_EVERY_S = 0.5


@dataclass(frozen=True)
class Bench:
    """A server that is up, and how to ask it. ``body``: request i, with other keys."""

    server: Any
    sizes: Any
    body: Callable[..., dict[str, Any]]

    def load(self, due: Sequence[float], bodies: Sequence[dict[str, Any]]) -> Any:
        return load(self.server.url, due, bodies, key=self.server.key)


def mixed(bench: Bench) -> str:
    """Sampling streams and beam searches beside each other: how many sequences run in a step."""

    async def watch(seen: list[float]) -> None:
        while True:
            await asyncio.sleep(0.1)
            url, key = bench.server.url, bench.server.key
            seen.append(await metric(url, "engine_sequences", key=key))

    async def run(sampling: int, beams: int) -> tuple[float, Summary, float]:
        bodies = [bench.body(i, temperature=1.0, seed=i) for i in range(sampling)]
        plain = {"stream": False, "stream_options": None, "num_beams": 4, "logprobs": None}
        bodies += [bench.body(100 + i, **plain) for i in range(beams)]
        seen: list[float] = []
        watching = asyncio.ensure_future(watch(seen))
        steps = await metric(bench.server.url, "engine_steps_total", key=bench.server.key)
        results = await bench.load([0.0] * len(bodies), bodies)
        watching.cancel()
        steps = await metric(bench.server.url, "engine_steps_total", key=bench.server.key) - steps
        busy = [x for x in seen if x] or [0.0]
        return statistics.mean(busy), Summary.of(results), steps

    rows = []
    for name, sampling, beams in (
        ("8 sampling", 8, 0),
        ("4 beams of 4", 0, 4),
        ("both", 8, 4),
    ):
        size, found, steps = asyncio.run(run(sampling, beams))
        between = f"{found.between[0]:.1f}" if sampling else "-"
        rows.append([name, f"{size:.1f}", f"{steps:.0f}", f"{found.rate:.0f}", between])
    header = ("requests", "mean sequences per step", "steps", "tokens/s", "between p50, ms")
    return "### Mixed traffic\n\n" + common.table(header, rows)


def overload(bench: Bench) -> str:
    """Ten times what the server can do, then normal traffic: what is answered, at which rate, and
    when normal latencies are back."""
    width = WIDTH * 3
    flood = [bench.body(i, stream=False, stream_options=None) for i in range(width)]
    peak = Summary.of(bench.server.run([0.0] * width, flood)).rate
    rate = peak / bench.sizes.new
    before = _normal(bench, rate, number=10_000)
    usual = serve_load.quantile([r.first for r in before if r.good], 0.99)
    resident = [bench.server.resident_mib()]
    end = bench.sizes.storm_s
    due = poisson(OVERLOAD * rate, end, seed=1)
    bodies = [bench.body(20_000 + i, stream=False, stream_options=None) for i in range(len(due))]

    async def storm() -> tuple[list[Result], list[Result]]:
        storming = asyncio.ensure_future(bench.load(due, bodies))
        await asyncio.sleep(end)
        count = int(bench.sizes.recovery_s / _PROBE_EVERY_S)
        probes = [bench.body(40_000 + i, max_tokens=4) for i in range(count)]
        times = [i * _PROBE_EVERY_S for i in range(count)]
        return (await asyncio.gather(storming, bench.load(times, probes)))[::1]

    stormed, after = asyncio.run(storm())
    resident.append(bench.server.resident_mib())
    useful = sum(r.tokens for r in stormed if r.good and r.end <= end) / end
    late = [r.due for r in after if not r.good or r.first > 2 * usual]
    back = (max(late) + _PROBE_EVERY_S) if late else 0.0
    statuses = Counter(r.status for r in stormed)
    polite = all(r.retry_after for r in stormed if r.status in (429, 503))
    rows = [
        ["peak, tokens/s", f"{peak:.0f}"],
        ["offered, requests/s", f"{OVERLOAD * rate:.1f}, for {end:g} s"],
        ["statuses", ", ".join(f"{s}: {n}" for s, n in sorted(statuses.items()))],
        ["refused with Retry-After", "all" if polite else "NOT ALL"],
        ["useful, tokens/s", f"{useful:.0f} ({useful / peak:.0%} of the peak)"],
        ["first token before, p99, ms", f"{1e3 * usual:.0f}"],
        ["back below twice that after, s", _back(back, bench.sizes.recovery_s)],
        ["resident before and after, MiB", " → ".join(f"{x:.0f}" for x in resident)],
    ]
    return "### Overload\n\n" + common.table(("what", "found"), rows)


def _back(seconds: float, watched: float) -> str:
    return f"{seconds:.1f}" if seconds < watched else f"NOT within {watched:g}"


def _normal(bench: Bench, rate: float, *, number: int) -> list[Result]:
    """A third of what the server can do."""
    due = poisson(rate / 3, bench.sizes.seconds / 2, seed=2) or [0.0]
    bodies = [bench.body(number + i) for i in range(len(due))]
    found: list[Result] = bench.server.run(due, bodies)
    return found


def patience(bench: Bench) -> str:
    """Four streams beside clients that drip their headers or do not read, in turns with as many
    that do not dawdle: the medians, and the median over rounds of what the slow ones cost."""
    url, key, many = bench.server.url, bench.server.key, bench.sizes.many
    numbers = iter(range(50_000, 10**6))

    def bodies(count: int) -> list[dict[str, Any]]:
        return [bench.body(next(numbers)) for _ in range(count)]

    async def run(beside: Any) -> Summary:
        async with beside:
            return Summary.of(await bench.load([0.0] * 4, bodies(4)))

    cases = {
        "nobody": contextlib.nullcontext,
        f"{many} that drip": lambda: serve_load.loris(url, many),
        "8 that read": lambda: serve_load.readers(url, bodies(8), slow=False, key=key),
        "8 that do not": lambda: serve_load.readers(url, bodies(8), slow=True, key=key),
    }
    usual = dict(zip(list(cases)[1::2], list(cases)[::2], strict=True))
    found: dict[str, list[Summary]] = {name: [] for name in cases}
    for _ in range(bench.sizes.rounds):
        for name, beside in cases.items():
            found[name].append(asyncio.run(run(beside())))
    rows = []
    for name, runs in found.items():
        middle = serve_load.median_of(runs)
        first, between = (f"{x:.0f}" for x in middle.first), (f"{x:.1f}" for x in middle.between)
        pairs = zip(runs, found[usual[name]], strict=True) if name in usual else ()
        costs = [mine.between[0] / theirs.between[0] - 1 for mine, theirs in pairs]
        cost = f"{statistics.median(costs):+.1%} ({usual[name]})" if costs else "-"
        rows.append([name, f"{middle.rate:.0f}", *first, *between, cost])
    header = ("beside", "tokens/s", "first p50, ms", "p99", "between p50, ms", "p99")
    title = f"### Clients that take their time, {bench.sizes.rounds} rounds\n\n"
    return title + common.table((*header, "between, against (median of rounds)"), rows)


PARTS: dict[str, Callable[[Bench], str]] = {
    "mixed": mixed,
    "overload": overload,
    "patience": patience,
}
