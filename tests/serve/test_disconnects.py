"""Clients that leave: nothing of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import threading
from typing import Any

from faulty import live, until

from xtdist.data.tokenizer import byte_tokenizer
from xtdist.decode import GenerationParams
from xtdist.serve.client import AsyncClient
from xtdist.serve.config import LimitsConfig

LEAVING = 1000
AT_ONCE = 40


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def request(draws: random.Random) -> bytes:
    body = {"model": "tiny", "prompt": "x" * draws.randrange(1, 20), "ignore_eos": True}
    body |= {"max_tokens": draws.randrange(1, 70), "stream": draws.random() < 0.7}
    body |= draws.choice([{}, {"n": 2}, {"logprobs": 2}, {"contrastive": {}, "temperature": 0}])
    if not body["stream"]:
        body |= draws.choice([{}, {"num_beams": 3}])
    raw = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


async def leave(port: int, draws: random.Random) -> None:
    """Send a request, or the beginning of one; read a little, or nothing; go."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = request(draws)
    whole = draws.random() < 0.8
    writer.write(raw if whole else raw[: draws.randrange(len(raw))])
    kind = draws.random()
    try:
        if kind < 0.3:
            await asyncio.sleep(draws.random() * 0.02)
        elif whole and kind < 0.9:
            await reader.read(draws.randrange(1, 3000))
    except ConnectionError:
        pass
    if draws.random() < 0.5:
        writer.transport.abort()
    writer.close()


def test_a_thousand_that_leave_leave_nothing_behind(make_engine: Any, serve_engine: Any) -> None:
    engine = make_engine()
    params = GenerationParams(temperature=0.0, max_tokens=20)
    want = make_engine().generate([byte_tokenizer().encode("def ")], params)[0].choices[0].text
    app, served = serve_engine(engine)
    draws = random.Random(1)

    async def main() -> None:
        async with live(app, timeout_keep_alive=1) as url, AsyncClient(url) as client:
            assert (await client.complete("def ", model="tiny", temperature=0)).text
            tasks, files, threads = (
                len(asyncio.all_tasks()),
                descriptors(),
                threading.active_count(),
            )
            port = int(url.rpartition(":")[2])
            room = asyncio.Semaphore(AT_ONCE)

            async def one() -> None:
                async with room:
                    await leave(port, draws)

            await asyncio.gather(*(one() for _ in range(LEAVING)))
            await until(lambda: not (served.thread.running or engine.has_work))
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
            await until(lambda: descriptors() <= files)
            assert threading.active_count() <= threads
            assert engine.stats().pages_used == 0
            answer = await client.complete("def ", model="tiny", temperature=0, max_tokens=20)
            assert answer.text == want

    asyncio.run(main())


async def stare(port: int) -> socket.socket:
    """Ask for a long stream, and read nothing of it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", port))
    body = {"model": "tiny", "prompt": "x", "max_tokens": 90, "ignore_eos": True, "n": 4}
    raw = json.dumps({**body, "logprobs": 20, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    await loop.sock_sendall(sock, f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    return sock


async def rest_of(sock: socket.socket) -> bytes:
    """All that had been sent."""
    data, loop = bytearray(), asyncio.get_running_loop()
    with sock, contextlib.suppress(ConnectionError):
        while chunk := await loop.sock_recv(sock, 65536):
            data += chunk
    return bytes(data)


def test_readers_that_stop_are_cut_off_and_hold_nothing(
    make_engine: Any, serve_engine: Any
) -> None:
    engine = make_engine()
    app, served = serve_engine(engine, limits=LimitsConfig(send_timeout_s=0.3))

    async def main() -> None:
        async with live(app, send_bytes=8192) as url, AsyncClient(url) as client:
            assert (await client.complete("def ", model="tiny", temperature=0)).text
            tasks, files = len(asyncio.all_tasks()), descriptors()
            staring = [await stare(int(url.rpartition(":")[2])) for _ in range(2)]
            await until(lambda: served.thread.running > 0)
            await until(lambda: not served.thread.running, timeout_s=30)
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
            assert not engine.has_work
            for sock in staring:
                data = await rest_of(sock)
                assert data.startswith(b"HTTP/1.1 200")
                assert b"[DONE]" not in data
            await until(lambda: descriptors() <= files)
            assert (await client.complete("def ", model="tiny", temperature=0)).text

    asyncio.run(main())
