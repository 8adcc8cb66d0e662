"""Clients for the serving benchmark: requests that leave when their time has come, whether or not
earlier ones are answered, and what became of them.

HTTP is spoken by hand: the clients share the machine with the server, and an HTTP library would
cost more than what is measured. Latencies count from the time at which a request should have left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_STATUS = re.compile(rb"HTTP/1\.1 (\d+)")
_FRAME = b'data: {"'
_USED = re.compile(rb'"completion_tokens": ?(\d+)')
_LOST = 0
_ANSWER_S = 300.0  # a request that takes longer is lost


@dataclass(kw_only=True)
class Result:
    """One request: seconds since the load began. ``arrivals``: of each read that brought tokens.
    ``status`` 0: the connection broke."""

    due: float
    status: int = _LOST
    arrivals: list[float] = field(default_factory=list)
    end: float = math.nan
    tokens: int = 0
    retry_after: bool = False

    @property
    def good(self) -> bool:
        return self.status == 200

    @property
    def first(self) -> float:
        return self.arrivals[0] - self.due

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


def poisson(rate: float, seconds: float, *, seed: int) -> list[float]:
    """Times of arrivals, ``rate`` a second on average."""
    draw, now, times = random.Random(seed), 0.0, []
    while (now := now + draw.expovariate(rate)) < seconds:
        times.append(now)
    return times


def message(url: str, body: dict[str, Any], key: str | None) -> bytes:
    """A whole POST to /v1/completions of the server at ``url``."""
    host, data = urlsplit(url).netloc, json.dumps(body).encode()
    auth = "" if key is None else f"Authorization: Bearer {key}\r\n"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\n{auth}Connection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    place = urlsplit(url)
    return await asyncio.open_connection(place.hostname, place.port)


async def load(
    url: str, due: Sequence[float], bodies: Sequence[dict[str, Any]], *, key: str | None = None
) -> list[Result]:
    """Send ``bodies``, one at each time of ``due``; the results in this order."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one(at: float, body: dict[str, Any]) -> Result:
        await asyncio.sleep(began + at - loop.time())
        result = Result(due=at)
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                await _ask(url, message(url, body, key), result, began=began)
        result.end = loop.time() - began
        return result

    return await asyncio.gather(*map(one, due, bodies))


async def _ask(url: str, request: bytes, result: Result, *, began: float) -> None:
    loop = asyncio.get_running_loop()
    reader, writer = await connect(url)
    try:
        writer.write(request)
        seen = await reader.readuntil(b"\r\n\r\n")
        found = _STATUS.match(seen)
        assert found is not None
        status, result.retry_after = int(found[1]), b"retry-after:" in seen.lower()
        tail = b""
        while data := await reader.read(65536):
            if _FRAME in data or status != 200:
                result.arrivals.append(loop.time() - began)
            tail = tail[-512:] + data
        used = _USED.findall(tail)
        result.tokens = int(used[-1]) if used else 0
        if status != 200 or result.tokens:  # otherwise it broke off
            result.status = status
        result.arrivals = result.arrivals or [loop.time() - began]
    finally:
        writer.close()


async def get(url: str, path: str, *, key: str | None = None) -> str:
    """The body of an answer that is not chunked, or its chunks."""
    reader, writer = await connect(url)
    auth = "" if key is None else f"Authorization: Bearer {key}\r\n"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{auth}Connection: close\r\n\r\n".encode())
    data = await reader.read(-1)
    writer.close()
    return data.decode(errors="replace").partition("\r\n\r\n")[2]


async def metric(url: str, name: str, *, key: str | None = None) -> float:
    """The sum of all samples of a metric."""
    text = await get(url, "/metrics", key=key)
    values = re.findall(rf"(?m)^xtdist_{name}(?:{{.*}})? (\S+)\s*$", text)
    return sum(map(float, values))


@contextlib.asynccontextmanager
async def loris(url: str, count: int) -> Any:
    """``count`` connections that send a byte of a header now and then."""

    async def drip() -> None:
        with contextlib.suppress(OSError):
            _, writer = await connect(url)
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            while True:
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.5)

    async with _beside([drip() for _ in range(count)]):
        yield


@contextlib.asynccontextmanager
async def readers(
    url: str, bodies: Sequence[dict[str, Any]], *, slow: bool, key: str | None
) -> Any:
    """Streams beside others; slow ones read a byte a second."""

    async def read(body: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            reader, writer = await connect(url)
            writer.write(message(url, body, key))
            while await reader.read(1 if slow else 65536):
                await asyncio.sleep(1 if slow else 0)

    async with _beside([read(body) for body in bodies]):
        yield


@contextlib.asynccontextmanager
async def _beside(work: Sequence[Any]) -> Any:
    tasks = [asyncio.ensure_future(w) for w in work]
    await asyncio.sleep(0.5)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def quantile(values: Sequence[float], q: float) -> float:
    """Nearest rank; NaN of nothing."""
    ranked = sorted(values)
    return ranked[min(math.ceil(q * len(ranked)), len(ranked)) - 1] if ranked else math.nan


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of one run: tokens per second of all good requests, and milliseconds."""

    rate: float
    first: tuple[float, float]
    between: tuple[float, float]
    statuses: Counter[int]

    @classmethod
    def of(cls, results: Sequence[Result]) -> Summary:
        good = [r for r in results if r.good]
        span = max((r.end for r in good), default=math.nan) - min(r.due for r in results)
        first, gaps = [r.first for r in good], [g for r in good for g in r.gaps]
        return cls(
            rate=sum(r.tokens for r in good) / span,
            first=(1e3 * quantile(first, 0.5), 1e3 * quantile(first, 0.99)),
            between=(1e3 * quantile(gaps, 0.5), 1e3 * quantile(gaps, 0.99)),
            statuses=Counter(r.status for r in results),
        )


def median_of(runs: Sequence[Summary]) -> Summary:
    """Each number the median over runs."""

    def middle(pick: Any) -> float:
        return statistics.median(pick(r) for r in runs)

    return Summary(
        rate=middle(lambda r: r.rate),
        first=(middle(lambda r: r.first[0]), middle(lambda r: r.first[1])),
        between=(middle(lambda r: r.between[0]), middle(lambda r: r.between[1])),
        statuses=sum((r.statuses for r in runs), Counter()),
    )
