"""The servers of the serving benchmark, each in a process of its own: it prints where it listens,
and ends when its input does.

    python jobs/benchmarks/serve_peers.py haproxy FOLDER SIZES

``engine`` listens too, but what it is asked for goes over the same event loop to the same engine
thread without HTTP, JSON or keys: one line holds all requests, the answer when they came back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import decode_peers
from decode_peers import Shape

from xtdist.checkpoint.weights import load_weights
from xtdist.decode import EngineConfig, GenerationParams
from xtdist.serve.config import AppConfig, LimitsConfig, ServeConfig, ServedModel

KEY = "xt-" + "b" * 43
SIZES = EngineConfig(max_sequences=32, max_waiting=32, max_sequence_tokens=512, seed=1)
LIMITS = LimitsConfig(send_timeout_s=5.0, max_wait_s=5.0)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def app_config(folder: Path) -> dict[str, Any]:
    """What all of ours have."""
    model = ServedModel(name="m", weights=str(folder / "weights"))
    keys = str(folder / "keys")
    return {"models": (model,), "engine": SIZES, "limits": LIMITS, "api_keys_file": keys}


def uvicorn_app(app: Any, *, before: Callable[[], Awaitable[None]] | None = None) -> None:
    """Run an ASGI application until the input ends."""
    import uvicorn

    port = free_port()
    config = uvicorn.Config(app, port=port, log_level="error", lifespan="off")
    server = uvicorn.Server(config)

    def wait() -> None:
        sys.stdin.read()
        server.should_exit = server.force_exit = True

    threading.Thread(target=wait, daemon=True).start()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen(1024)

        async def serve() -> None:
            if before is not None:
                await before()
            print(f"http://127.0.0.1:{port}", flush=True)
            await server.serve(sockets=[listener])

        asyncio.run(serve())


def ours(folder: Path) -> None:
    """The replica's application under uvicorn, without Ray."""
    from xtdist.serve.replica import Replica

    replica = Replica(AppConfig(**app_config(folder)))
    uvicorn_app(replica.__serve_build_asgi_app__(), before=lambda: replica.reconfigure({}))


def on_ray(folder: Path, *, proxy: Any) -> None:
    """``xtdist serve``."""
    from xtdist.serve.server import run

    os.environ.pop("RAY_ADDRESS", None)
    config = ServeConfig(**app_config(folder), port=free_port(), proxy=proxy)
    with run(config, block=False) as server:
        print(server.url, flush=True)
        sys.stdin.read()


def engine(folder: Path) -> None:
    """The engine's thread and an event loop that reads it."""
    from xtdist.serve.job import Job
    from xtdist.serve.loading import load_served

    thread = load_served(app_config(folder)["models"][0], AppConfig(**app_config(folder))).thread

    async def run(due: list[float], bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def one(at: float, body: dict[str, Any]) -> dict[str, Any]:
            await asyncio.sleep(began + at - loop.time())
            params = GenerationParams(
                max_tokens=body["max_tokens"], temperature=0.0, ignore_eos=True
            )
            job, arrivals, tokens = Job([body["prompt"]], params, 600.0), [], 0
            thread.submit(job)
            async for pieces in job.pieces():
                arrivals.append(loop.time() - began)
                tokens += sum(p.size for p in pieces)
            end = loop.time() - began
            return {"due": at, "status": 200, "arrivals": arrivals, "end": end, "tokens": tokens}

        return await asyncio.gather(*map(one, due, bodies))

    async def serve() -> None:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await run(*json.loads(line))), flush=True)

    asyncio.run(serve())
    thread.stop()


def plain(folder: Path, shape: Shape) -> None:
    """x-transformers' generate behind a FastAPI handler, as a first attempt would have it. One
    request at a time: several would take each other's core."""
    from fastapi import FastAPI

    _, theirs = decode_peers.pair(shape)
    theirs.load_state_dict(torch.load(folder / "theirs.pt", weights_only=True))
    net, lock, app = decode_peers.XTransformers(theirs), threading.Lock(), FastAPI()

    @app.post("/v1/completions")
    def completions(body: dict[str, Any]) -> dict[str, Any]:
        with lock:
            (ids,) = net([body["prompt"]], body["max_tokens"])
        return {"choices": [{"token_ids": ids}], "usage": {"completion_tokens": len(ids)}}

    uvicorn_app(app)


def transformers(folder: Path, shape: Shape) -> None:
    """transformers' continuous batching behind a FastAPI handler that streams."""
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model = load_weights(folder / "weights").model
    peer = decode_peers.llama(model, shape)
    greedy = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=-1)
    sizes = ContinuousBatchingConfig(num_blocks=32 * 4, max_batch_tokens=512)
    manager = peer.init_continuous_batching(greedy, continuous_batching_config=sizes)
    manager.start()
    app, numbers = FastAPI(), iter(range(10**9))

    @app.post("/v1/completions")
    async def completions(body: dict[str, Any]) -> StreamingResponse:
        name, news = f"r{next(numbers)}", asyncio.Queue[Any]()
        manager.register_result_handler(name, news.put_nowait)
        most = body["max_tokens"]
        manager.add_request(body["prompt"], name, max_new_tokens=most, streaming=True)

        async def frames() -> AsyncIterator[str]:
            while True:
                out = await news.get()
                used = {"completion_tokens": len(out.generated_tokens)}
                yield f"data: {json.dumps({'id': name, 'usage': used})}\n\n"
                if out.is_finished():
                    return

        return StreamingResponse(frames(), media_type="text/event-stream")

    uvicorn_app(app)
    manager.stop(block=True)


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    shape = Shape(**json.loads(sys.argv[3]))
    torch.set_num_threads(1)
    with contextlib.suppress(KeyboardInterrupt):
        if kind in ("haproxy", "ray"):
            on_ray(folder, proxy=kind)
        elif kind in ("plain", "transformers"):
            globals()[kind](folder, shape)
        else:
            {"engine": engine, "ours": ours}[kind](folder)


if __name__ == "__main__":
    main()
