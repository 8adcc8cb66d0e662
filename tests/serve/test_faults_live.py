"""Harm to a live server of several replicas, and what its clients see of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from faulty import until
from tiny_server import free_port, save_tiny

from xtdist.checkpoint import load_weights
from xtdist.decode import Engine, EngineConfig, GenerationParams
from xtdist.serve import LimitsConfig, ServeConfig, ServedModel, run
from xtdist.serve.client import AsyncClient, Client, Retry, StreamBroken

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.alone,
    pytest.mark.timeout(1500),
]
REPLICAS = 4
HARM_S = 120.0
KILL_EVERY_S = 5.0
LOAD = 0.7
TOKENS = 60
PROMPTS = ("import ", "def f(x):\n", "class ", "for i in ")
PATIENT = Retry(attempts=200, deadline_s=400.0, silence_s=20.0, seed=0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("weights") / "expert", seed=1)


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Any]:
    address = os.environ.pop("RAY_ADDRESS", None)
    import ray

    ray.init(
        address="local",
        num_cpus=REPLICAS + 2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    config = ServeConfig(
        port=free_port(),
        models=(ServedModel(name="tiny", weights=str(weights)),),
        engine=EngineConfig(max_sequences=8, max_waiting=64, seed=7),
        limits=LimitsConfig(send_timeout_s=5.0),
        replicas=REPLICAS,
    )
    try:
        with run(config, block=False) as running:
            yield running
    finally:
        ray.shutdown()
        if address is not None:
            os.environ["RAY_ADDRESS"] = address


@pytest.fixture(scope="module")
def texts(weights: Path) -> dict[tuple[str, int], str]:
    """What the engine makes of a prompt and a seed."""
    loaded = load_weights(weights)
    tokenizer = loaded.tokenizer
    banned = (tokenizer.mask_id, tokenizer.pad_id)
    engine = Engine(
        loaded.model, tokenizer=tokenizer, eos_ids=(tokenizer.eot_id,), banned_ids=banned
    )
    found = {}
    for prompt in PROMPTS:
        for seed in range(8):
            params = GenerationParams(seed=seed, max_tokens=TOKENS, ignore_eos=True)
            whole = engine.generate([tokenizer.encode(prompt)], params)[0].choices[0]
            found[prompt, seed] = whole.text
    return found


def replicas() -> list[psutil.Process]:
    """Of the server of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ServeReplica" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it has just ended
            continue
    return found


def all_answer() -> bool:
    """Whether every replica takes requests: one that has just been started may not, and the others
    have less room together than the server has as a rule."""
    from ray import serve

    (deployment,) = serve.status().applications["xtdist"].deployments.values()
    return deployment.replica_states == {"RUNNING": REPLICAS}


def resident_bytes() -> int:
    """Of everything that the server consists of."""
    found = psutil.Process().children(recursive=True)
    return sum(p.memory_info().rss for p in found if "ray::" in " ".join(p.cmdline()))


@dataclass
class Traffic:
    """Requests of three kinds, and how they ended."""

    url: str
    texts: dict[tuple[str, int], str]
    rng: np.random.Generator
    ends: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    async def one(self, client: AsyncClient) -> None:
        kind = str(self.rng.choice(["whole", "seeded stream", "free stream"]))
        prompt, seed = PROMPTS[self.rng.integers(len(PROMPTS))], int(self.rng.integers(8))
        params: dict[str, Any] = {"model": "tiny", "max_tokens": TOKENS, "ignore_eos": True}
        try:
            if kind == "whole":
                text = (await client.complete(prompt, seed=seed, **params)).text
                ends = 1
            else:
                seeded = {} if kind == "free stream" else {"seed": seed}
                stream = await client.stream(prompt, **seeded, **params)
                pieces = [piece async for piece in stream]
                text = "".join(piece.text for piece in pieces)
                ends = sum(piece.finish_reason is not None for piece in pieces)
        except StreamBroken as e:
            self.ends[f"{kind}: broken"] += 1
            if kind != "free stream":
                self.problems.append(f"{kind}: {e!r} from {e.__cause__!r}")
            return
        except Exception as e:
            self.problems.append(f"{kind}: {e!r}")
            return
        self.ends[kind] += 1
        if ends != 1:
            self.problems.append(f"{kind}: {ends} ends")
        if kind != "free stream" and text != self.texts[prompt, seed]:
            self.problems.append(f"{kind}: another text")

    async def at(self, rate: float, seconds: float, client: AsyncClient) -> None:
        """Requests that come at ``rate`` per second, whether or not others were answered."""
        loop = asyncio.get_running_loop()
        tasks, begun, due = [], loop.time(), 0.0
        while due < seconds:
            await asyncio.sleep(max(begun + due - loop.time(), 0.0))
            tasks.append(asyncio.create_task(self.one(client)))
            due += float(self.rng.exponential(1 / rate))
        await asyncio.gather(*tasks)

    async def most(self, seconds: float, client: AsyncClient) -> float:
        """Requests per second that the server answers if there are always some."""
        loop = asyncio.get_running_loop()
        begun, count = loop.time(), 0

        async def worker() -> None:
            nonlocal count
            while loop.time() - begun < seconds:
                await self.one(client)
                count += 1

        await asyncio.gather(*(worker() for _ in range(4 * REPLICAS)))
        return count / (loop.time() - begun)


async def harm(what: signal.Signals, *, every_s: float, seconds: float) -> int:
    """Send a signal to a replica again and again; how often."""
    rng, times = np.random.default_rng(1), 0
    for _ in range(int(seconds / every_s)):
        await asyncio.sleep(every_s)
        alive = replicas()
        if alive:
            alive[rng.integers(len(alive))].send_signal(what)
            times += 1
    return times


def test_replicas_that_are_killed_cost_no_answer_and_end_no_stream_silently(
    server: Any, texts: dict[tuple[str, int], str]
) -> None:
    traffic = Traffic(server.url, texts, np.random.default_rng(0))

    async def main() -> tuple[float, int]:
        async with AsyncClient(server.url, retry=PATIENT) as client:
            most = await traffic.most(10.0, client)
            assert not traffic.problems
            traffic.ends.clear()
            load = asyncio.create_task(traffic.at(LOAD * most, HARM_S, client))
            kills = await harm(signal.SIGKILL, every_s=KILL_EVERY_S, seconds=HARM_S)
            await load
            return most, kills

    most, kills = asyncio.run(main())
    print(f"{kills} kills at {LOAD:.0%} of {most:.1f} requests/s: {dict(traffic.ends)}")
    print(*traffic.problems, sep="\n")
    assert kills >= HARM_S / KILL_EVERY_S / 2
    assert not traffic.problems
    assert traffic.ends["whole"] > 50
    assert traffic.ends["free stream: broken"]  # so something was hit


def test_a_replica_that_is_frozen_is_replaced_and_costs_no_answer(
    server: Any, texts: dict[tuple[str, int], str]
) -> None:
    traffic = Traffic(server.url, texts, np.random.default_rng(2))

    async def main() -> None:
        async with AsyncClient(server.url, retry=PATIENT) as client:
            await until(all_answer, timeout_s=120)
            frozen = replicas()[0]
            frozen.send_signal(signal.SIGSTOP)
            try:
                await traffic.at(3.0, 30.0, client)
                await until(lambda: not frozen.is_running(), timeout_s=300)
            finally:
                if frozen.is_running():
                    frozen.send_signal(signal.SIGCONT)

    asyncio.run(main())
    assert not traffic.problems
    assert traffic.ends["whole"]


async def trickle(port: int, head: bytes, rest: bytes, *, every_s: float) -> bytes:
    """Send a byte now and then; what came back when the server had enough."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = bytearray()

    async def read() -> None:
        while chunk := await reader.read(4096):
            got.extend(chunk)

    reading = asyncio.create_task(read())
    try:
        writer.write(head)
        for byte in rest:
            if reading.done() or got:
                break
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(every_s)
    except ConnectionError:
        pass
    writer.close()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    return bytes(got)


def test_bodies_that_trickle_are_cut_off_and_others_are_answered(
    server: Any, texts: dict[tuple[str, int], str]
) -> None:
    traffic = Traffic(server.url, texts, np.random.default_rng(3))
    port = int(server.url.rpartition(":")[2])
    start = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    body = start + b"Content-Length: 1000\r\n\r\n"

    async def main() -> list[bytes]:
        async with AsyncClient(server.url, retry=PATIENT) as client:
            await until(all_answer, timeout_s=120)
            slow = [trickle(port, body, b" " * 60, every_s=0.5) for _ in range(100)]
            heads = [trickle(port, start, b"X-A: " + b"a" * 55, every_s=0.5) for _ in range(100)]
            replies = asyncio.gather(*slow)
            others = asyncio.gather(*heads)
            await traffic.at(3.0, 20.0, client)
            await others
            return await replies

    replies = asyncio.run(main())
    assert not traffic.problems
    assert Counter(reply[:12] for reply in replies) == {b"HTTP/1.1 408": len(replies)}


def test_readers_that_stop_take_no_memory_and_no_places(
    server: Any, texts: dict[tuple[str, int], str]
) -> None:
    traffic = Traffic(server.url, texts, np.random.default_rng(4))
    port = int(server.url.rpartition(":")[2])
    body = {"model": "tiny", "prompt": "x", "max_tokens": 90, "ignore_eos": True, "stream": True}
    raw = json.dumps({**body, "n": 4, "logprobs": 20}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw

    async def main() -> int:
        async with AsyncClient(server.url, retry=PATIENT) as client:
            await until(all_answer, timeout_s=120)
            await traffic.at(3.0, 5.0, client)
            before, staring = resident_bytes(), []
            for _ in range(60):
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.connect(("127.0.0.1", port))
                sock.sendall(request)
                staring.append(sock)
                await asyncio.sleep(0.1)
            await traffic.at(3.0, 20.0, client)
            grown = resident_bytes() - before
            for sock in staring:
                sock.close()
            return grown

    grown = asyncio.run(main())
    print(f"60 readers that stop: {grown / 2**20:.0f} MiB more")
    assert not traffic.problems
    assert grown < 300 * 2**20  # an answer has 0.7 MB


def test_a_server_that_stops_lets_its_streams_finish(
    server: Any, texts: dict[tuple[str, int], str]
) -> None:
    """Comes last: the server is gone then."""
    with Client(server.url, retry=Retry(attempts=2)) as client:
        stream = client.stream(PROMPTS[0], model="tiny", seed=1, max_tokens=TOKENS, ignore_eos=True)
        first = next(stream)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        text = first.text + "".join(piece.text for piece in stream)
        stopping.join(timeout=120)
    assert text == texts[PROMPTS[0], 1]
