"""Requests that fail inside of the engine, and engines that fail: others go on, or are told."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest
from faulty import live

from xtdist.data.tokenizer import byte_tokenizer
from xtdist.decode import GenerationParams
from xtdist.serve.client import AsyncClient, RequestError, Retry, StreamBroken
from xtdist.serve.config import LimitsConfig

POISON = "poison"
FAST = Retry(first_s=1e-3, longest_s=1e-2, deadline_s=30.0, seed=0)


class Poisoned:
    """An engine with a processor that fails on one prompt after a few tokens."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.poisoned = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def add(self, prompt_ids: Any, params: Any, **options: Any) -> str:
        poison = list(prompt_ids[: len(POISON)]) == list(POISON.encode())
        self.poisoned += poison
        return self.engine.add(prompt_ids, params, processor=_fails if poison else None, **options)


def _fails(tokens: Any, scores: Any) -> Any:
    if len(tokens) > 3:
        raise ValueError("the canary of a processor")
    return scores


def test_a_poisoned_request_fails_alone_and_is_not_tried_for_ever(
    make_engine: Any, serve_engine: Any
) -> None:
    ids = byte_tokenizer().encode("import ")
    params = [GenerationParams(seed=s, max_tokens=40, ignore_eos=True) for s in range(6)]
    want = [make_engine().generate([ids], p)[0].choices[0].text for p in params]
    engine = Poisoned(make_engine())
    app, served = serve_engine(engine)

    async def main() -> None:
        async with live(app) as url, AsyncClient(url, retry=FAST) as client:

            async def fine(seed: int) -> str:
                stream = await client.stream(
                    "import ", model="tiny", seed=seed, max_tokens=40, ignore_eos=True
                )
                return "".join([piece.text async for piece in stream])

            async def whole() -> None:
                with pytest.raises(RequestError) as failed:
                    await client.complete(POISON, model="tiny", max_tokens=20, ignore_eos=True)
                assert (failed.value.status, failed.value.code) == (500, "internal_error")
                assert "canary" not in str(failed.value)

            async def streamed() -> None:
                stream = await client.stream(
                    POISON, model="tiny", max_tokens=20, ignore_eos=True, seed=1
                )
                with pytest.raises(StreamBroken) as broken:
                    async for _ in stream:
                        pass
                assert len(broken.value.received.choices[0].token_ids) >= 3

            texts, *_ = await asyncio.gather(
                asyncio.gather(*map(fine, range(6))), whole(), streamed()
            )
            assert texts == want
            assert engine.poisoned == 4  # each of them once more
            async with httpx.AsyncClient(base_url=url) as plain:
                assert (await plain.get("/health")).status_code == 200
            assert not served.thread.broken
            assert not served.thread.running

    asyncio.run(main())


class Wedged:
    """An engine whose step does not return."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.go_on = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self) -> Any:
        self.go_on.wait()
        return self.engine.step()


def test_a_wedged_engine_is_unhealthy_soon(make_engine: Any, serve_engine: Any) -> None:
    engine = Wedged(make_engine())
    app, _ = serve_engine(engine, limits=LimitsConfig(health_timeout_s=0.2))

    async def main() -> None:
        async with live(app) as url, httpx.AsyncClient(base_url=url, timeout=5) as client:
            reply = await client.get("/health")
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "unhealthy"
            assert "Retry-After" in reply.headers
            engine.go_on.set()

    try:
        asyncio.run(main())
    finally:
        engine.go_on.set()
