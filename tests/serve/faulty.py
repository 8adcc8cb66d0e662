"""An ASGI application on a real socket of this process, and a TCP proxy that breaks things."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def live(app: Any, *, send_bytes: int | None = None, **options: Any) -> AsyncIterator[str]:
    """``app`` behind uvicorn in the running event loop; gives its URL. ``send_bytes``: what the
    kernel keeps of an answer that is not read."""
    with socket.socket() as listener:
        if send_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_config=None, lifespan="off", **options)
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.001)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            await task


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """``app`` behind uvicorn in a thread; gives its URL."""
    loop, found = asyncio.new_event_loop(), Future[str]()
    ended = asyncio.Event()

    async def main() -> None:
        async with live(app) as url:
            found.set_result(url)
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    try:
        yield found.result(timeout=20)
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(timeout=20)
        loop.close()


@dataclass(frozen=True)
class Fault:
    """What happens to one connection.

    Args:
        reply: sent instead of asking the server.
        after: bytes of the server's reply that come through; then the connection is reset, or
            silent if ``stall``. 0: nothing of an answer.
        reset: as soon as it is accepted.
    """

    reply: bytes | None = None
    after: int | None = None
    stall: bool = False
    reset: bool = False


FINE = Fault()


def unavailable(status: str, headers: str = "", body: str = "") -> Fault:
    text = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    return Fault(reply=(text + body).encode())


@dataclass
class Proxy:
    """Connections to the servers at ``urls`` in turn; the k-th one meets the k-th fault, later ones
    none."""

    urls: Sequence[str]
    faults: Iterator[Fault] = field(default_factory=lambda: iter(()))
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)  # of what came first on each connection
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def plan(self, faults: Iterable[Fault]) -> None:
        self.faults = iter(faults)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        url = self.urls[(self.connections - 1) % len(self.urls)]
        try:
            await self._serve(reader, writer, url, next(self.faults, FINE))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, url: str, fault: Fault
    ) -> None:
        if fault.reset:
            return _reset(writer)
        head = await reader.read(65536)
        self.heads.append(head)
        if fault.reply is not None:
            writer.write(fault.reply)
            await writer.drain()
            return None
        host, _, port = url.removeprefix("http://").partition(":")
        upstream, out = await asyncio.open_connection(host, int(port))
        try:
            out.write(head)
            forward = asyncio.create_task(_pump(reader, out))
            await _back(upstream, writer, fault)
            forward.cancel()
        finally:
            out.close()


async def _back(upstream: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault) -> None:
    left = fault.after
    while chunk := await upstream.read(65536):
        writer.write(chunk if left is None else chunk[:left])
        await writer.drain()
        left = None if left is None else left - len(chunk)
        if left is not None and left <= 0:
            if fault.stall:
                await asyncio.sleep(3600)
            await asyncio.sleep(0)
            return _reset(writer)
    return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End with RST, as a killed process would; what was written before may be lost."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def until(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Wait for ``condition``."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
