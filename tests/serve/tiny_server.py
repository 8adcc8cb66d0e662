"""A tiny random model, and requests to an ASGI application in this process."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

from xtdist.checkpoint.weights import WeightsConfig, save_weights
from xtdist.config import from_mapping, to_mapping
from xtdist.data.tokenizer import Tokenizer, byte_tokenizer
from xtdist.model.config import ModelConfig
from xtdist.model.wrapper import TransformerWrapper, build_model
from xtdist.serve.auth import LiveKeys
from xtdist.serve.backend import Backend
from xtdist.serve.config import LimitsConfig
from xtdist.serve.engine_thread import EngineThread
from xtdist.serve.gate import Gate
from xtdist.serve.routes import make_app
from xtdist.serve.served import Served

MAX_SEQ_LEN = 96


def tiny_model(
    seed: int, *, dim: int = 32, num_tokens: int = 259, causal: bool = True
) -> TransformerWrapper:
    config = ModelConfig(
        dim=dim,
        depth=2,
        heads=2,
        num_tokens=num_tokens,
        max_seq_len=MAX_SEQ_LEN,
        causal=causal,
    )
    model = build_model(config, generator=torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():  # confident enough that decoders differ from each other
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


class Http:
    """Requests to an ASGI application; one event loop for all of them."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.runner = asyncio.Runner()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.runner.run(self.arequest(method, path, **options))

    async def arequest(self, method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, **options)

    def complete(self, **body: Any) -> httpx.Response:
        return self.request("POST", "/v1/completions", json={"model": "tiny", **body})

    def raw(self, content: bytes, **headers: str) -> httpx.Response:
        headers = {"content-type": "application/json", **headers}
        return self.request("POST", "/v1/completions", content=content, headers=headers)

    def gather(self, *bodies: dict[str, Any]) -> list[httpx.Response]:
        async def all_of_them() -> list[httpx.Response]:
            posts = [
                self.arequest("POST", "/v1/completions", json={"model": "tiny", **b})
                for b in bodies
            ]
            return await asyncio.gather(*posts)

        return self.runner.run(all_of_them())


def events(response: httpx.Response) -> list[Any]:
    """The frames of a server-sent event stream, parsed; ``[DONE]`` as itself."""
    frames = response.text.split("\n\n")
    assert frames.pop() == ""
    assert all(f.startswith("data: ") for f in frames)
    data = [f.removeprefix("data: ") for f in frames]
    return [d if d == "[DONE]" else json.loads(d) for d in data]


def save_tiny(
    folder: Path,
    *,
    seed: int,
    dim: int = 32,
    tokenizer: Tokenizer | None = None,
    objective: str = "autoregressive",
) -> Path:
    """A weights folder with a random model."""
    tokenizer = tokenizer or byte_tokenizer()
    causal = objective == "autoregressive"
    model = tiny_model(seed, dim=dim, num_tokens=tokenizer.vocab_size, causal=causal)
    config = from_mapping(
        WeightsConfig,
        {"model": to_mapping(model.config), "objective": {"kind": objective}, "meta": {}},
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder.with_suffix(".tokenizer.json"))
    save_weights(
        folder, model.state_dict(), config, tokenizer=folder.with_suffix(".tokenizer.json")
    )
    return folder


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextmanager
def served_engines() -> Iterator[Callable[..., Any]]:
    """Gives ``serve(engine, …)``, which gives (app, served); their threads end with the block."""
    threads = []

    def make(engine: Any, *, limits: LimitsConfig | None = None, gate: Gate | None = None) -> Any:
        tokenizer = byte_tokenizer()
        thread = EngineThread(engine, name="tiny")
        threads.append(thread)
        served = Served(
            name="tiny",
            thread=thread,
            tokenizer=tokenizer,
            digest="0123456789abcdef" * 4,
            max_seq_len=MAX_SEQ_LEN,
            contrastive=True,
        )
        backend = Backend(
            models=[served],
            limits=limits or LimitsConfig(),
            gate=gate or Gate(LiveKeys(), limits=limits),
        )
        return make_app(backend), served

    try:
        yield make
    finally:
        for thread in threads:
            thread.stop()
