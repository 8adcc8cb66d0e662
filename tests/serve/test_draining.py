"""A replica that is told to stop, and one whose engine hangs."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from faulty import Proxy, live, until
from tiny_server import save_tiny

from xtdist.checkpoint import load_weights
from xtdist.decode import Engine, GenerationParams
from xtdist.serve.client import AsyncClient, Retry
from xtdist.serve.config import AppConfig, LimitsConfig, ServedModel
from xtdist.serve.errors import ApiError
from xtdist.serve.job import Job
from xtdist.serve.replica import Replica

PROMPT = "import "
PARAMS: dict[str, Any] = {"seed": 4, "max_tokens": 60, "ignore_eos": True}
FAST = Retry(first_s=1e-3, longest_s=1e-2, deadline_s=60.0, seed=0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("weights") / "w", seed=1)


@pytest.fixture(scope="module")
def text(weights: Path) -> str:
    loaded = load_weights(weights)
    banned = (loaded.tokenizer.mask_id, loaded.tokenizer.pad_id)
    engine = Engine(loaded.model, tokenizer=loaded.tokenizer, banned_ids=banned)
    ids = loaded.tokenizer.encode(PROMPT)
    return engine.generate([ids], GenerationParams(**PARAMS))[0].choices[0].text


async def replica(weights: Path, **config: Any) -> Replica:
    models = (ServedModel(name="tiny", weights=str(weights)),)
    made = Replica(AppConfig(models=models, **config))
    await made.reconfigure({})
    return made


def slowed(made: Replica, *, by_s: float) -> None:
    """Every step of its engine takes longer."""
    engine = made.backend.find("tiny").thread.engine
    step = engine.step

    def slow() -> Any:
        time.sleep(by_s)
        return step()

    engine.step = slow  # type: ignore[method-assign]


def test_streams_finish_and_nothing_new_begins(weights: Path, text: str) -> None:
    async def main() -> None:
        made = await replica(weights, drain_s=30.0)
        slowed(made, by_s=0.005)
        app = made.__serve_build_asgi_app__()
        async with live(app) as url, AsyncClient(url, retry=FAST) as client:
            streams = [await client.stream(PROMPT, model="tiny", **PARAMS) for _ in range(3)]
            begun = [(await anext(s)).text for s in streams]
            draining = asyncio.create_task(made.drain())
            await until(lambda: made.backend.draining)
            async with httpx.AsyncClient(base_url=url) as other:
                body = {"model": "tiny", "prompt": "x"}
                refused = await other.post("/v1/completions", json=body)
                assert (await other.get("/health")).status_code == 503
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
            assert "Retry-After" in refused.headers
            for first, stream in zip(begun, streams, strict=True):
                assert first + "".join([piece.text async for piece in stream]) == text
            assert await draining == 0

    asyncio.run(main())


def test_a_stream_that_outlives_the_grace_goes_on_elsewhere(weights: Path, text: str) -> None:
    async def main() -> None:
        leaving, staying = await replica(weights, drain_s=0.05), await replica(weights)
        slowed(leaving, by_s=0.02)
        apps = [made.__serve_build_asgi_app__() for made in (leaving, staying)]
        async with live(apps[0]) as first, live(apps[1]) as second:
            proxy = Proxy([first, second])
            async with proxy.running() as url, AsyncClient(url, retry=FAST) as client:
                stream = await client.stream(PROMPT, model="tiny", **PARAMS)
                begun = (await anext(stream)).text
                assert await leaving.drain() == 1
                assert begun + "".join([piece.text async for piece in stream]) == text
                assert proxy.connections == 2

    asyncio.run(main())


def test_a_replica_with_a_step_that_does_not_return_is_replaced(weights: Path) -> None:
    go_on = threading.Event()

    async def main() -> None:
        limits = LimitsConfig(stall_timeout_s=0.1, health_timeout_s=0.1)
        made = await replica(weights, limits=limits)
        engine = made.backend.find("tiny").thread.engine
        step = engine.step
        engine.step = lambda: go_on.wait(30) and step()  # type: ignore[method-assign]
        made.check_health()
        async with live(made.__serve_build_asgi_app__()) as url:
            async with httpx.AsyncClient(base_url=url) as client:
                while (await client.get("/health")).status_code != 503:  # it asks each second
                    await asyncio.sleep(0.1)
            await until(lambda: made.backend.find("tiny").thread.stalled_s > 0.1)
            with pytest.raises(RuntimeError, match=r"tiny takes more than 0\.1 s"):
                made.check_health()
            go_on.set()
            await until(lambda: not made.backend.find("tiny").thread.running)
            made.check_health()

    try:
        asyncio.run(asyncio.wait_for(main(), 30))
    finally:
        go_on.set()


def test_who_waits_for_an_engine_that_hangs_is_sent_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xtdist.serve.job._LATE_S", 0.01)

    async def main() -> ApiError:
        with pytest.raises(ApiError) as told:
            async for _ in Job([[1]], GenerationParams(), timeout_s=0.01).pieces():
                pass
        return told.value

    error = asyncio.run(main())
    assert (error.status, error.code) == (503, "unhealthy")
    assert "Retry-After" in error.headers
