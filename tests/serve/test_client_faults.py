"""The client, a real engine, sockets between them, and what can happen to those."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import Any

import pytest
from faulty import FINE, Fault, Proxy, live, unavailable

from xtdist.checkpoint.chat_template import ChatTemplate
from xtdist.data.tokenizer import byte_tokenizer
from xtdist.decode import ContrastiveParams, GenerationParams
from xtdist.serve.client import AsyncClient, Retry, StreamBroken, Unreachable

PROMPT = "import numpy as "
FAST = Retry(first_s=1e-3, longest_s=1e-2, deadline_s=60.0, seed=0)
GONE = unavailable("503 Service Unavailable", "Retry-After: 0\r\n", '{"error": {"message": "x"}}')
DIED = unavailable("500 Internal Server Error", body="Internal Server Error")
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "ignore_eos": True},
    "sampled": {"seed": 5, "top_p": 0.95, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    "counted": {"seed": 6, "min_tokens": 30, "top_k": 20, "presence_penalty": 1.0},
    "contrastive": {"temperature": 0.0, "contrastive": {"alpha": 0.1, "beta": 0.5}},
}


def expected(engine: Any, params: dict[str, Any]) -> Any:
    """The engine's own choice."""
    contrast = params.get("contrastive")
    known = {**params, "contrastive": ContrastiveParams(**contrast) if contrast else None}
    asked = GenerationParams(**{"max_tokens": 48, **known})
    return engine.generate([byte_tokenizer().encode(PROMPT)], asked)[0].choices[0]


@asynccontextmanager
async def behind(apps: list[Any]) -> Any:
    """(proxy, url) in front of servers."""
    async with _all_live(apps) as urls:
        proxy = Proxy(urls)
        async with proxy.running() as url:
            yield proxy, url


@asynccontextmanager
async def _all_live(apps: list[Any]) -> Any:
    if not apps:
        yield []
        return
    async with live(apps[0]) as url, _all_live(apps[1:]) as urls:
        yield [url, *urls]


async def read(url: str, *, retry: Retry = FAST, **params: Any) -> tuple[list[Any], Any]:
    async with AsyncClient(url, retry=retry) as client:
        stream = await client.stream(PROMPT, model="tiny", max_tokens=48, **params)
        return [piece async for piece in stream], stream.answer


def test_whole_requests_survive_whatever_happens_before_their_answer(
    make_engine: Any, serve_engine: Any
) -> None:
    params = {**SETTINGS["sampled"], "max_tokens": 12}
    want = expected(make_engine(), params)

    async def main() -> None:
        async with behind([serve_engine(make_engine())[0] for _ in range(2)]) as (proxy, url):
            faults = [Fault(reset=True), GONE, Fault(after=0), DIED, Fault(after=90)]
            for first in range(len(faults)):
                proxy.plan([*faults[first:], *faults[:first], Fault(after=300)])
                async with AsyncClient(url, retry=FAST) as client:
                    answer = await client.complete(PROMPT, model="tiny", **params)
                assert answer.text == want.text
            assert proxy.connections == 7 * len(faults)

    asyncio.run(main())


@pytest.mark.parametrize("name", SETTINGS)
def test_broken_streams_go_on_at_another_replica_where_they_were(
    make_engine: Any, serve_engine: Any, name: str
) -> None:
    params = dict(SETTINGS[name])
    text = expected(make_engine(), params).text
    params["stop"] = [text[30:34], text[8:10] + "\0"]  # ends it; is begun and never complete
    want = expected(make_engine(), params)
    assert want.finish_reason == "stop"
    draws = random.Random(name)

    async def main() -> None:
        async with behind([serve_engine(make_engine())[0] for _ in range(2)]) as (proxy, url):
            pieces, answer = await read(url, **params)
            size = 400 * len(pieces)
            for _ in range(3):
                cuts = [Fault(after=draws.randrange(size))]
                cuts += [draws.choice([GONE, DIED, FINE]), Fault(after=draws.randrange(size))]
                before = proxy.connections
                proxy.plan(cuts)
                pieces, answer = await read(url, **params)
                assert proxy.connections > before
                assert "".join(p.text for p in pieces) == want.text == answer.text
                assert tuple(t for p in pieces for t in p.token_ids) == want.token_ids
                assert [p.finish_reason for p in pieces if p.finish_reason] == ["stop"]

    asyncio.run(main())


def test_broken_chats_are_sent_again_and_skipped(make_engine: Any, serve_engine: Any) -> None:
    """Two choices, each of which goes on where it was."""
    talk = [{"role": "user", "content": "Hi"}]
    params: dict[str, Any] = {"model": "tiny", "seed": 5, "n": 2, "max_tokens": 30}
    app, served = serve_engine(make_engine())
    served.chat_template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")

    async def main() -> None:
        async with behind([app]) as (proxy, url), AsyncClient(url, retry=FAST) as client:
            whole = await client.chat(talk, return_token_ids=True, **params)
            wanted = [(c.text, c.token_ids, c.finish_reason) for c in whole.choices]
            for cut in (1500, 3000, 4500):
                await client.aclose()
                client = AsyncClient(url, retry=FAST)
                before = proxy.connections
                proxy.plan([Fault(after=cut), Fault(after=cut + 700)])
                stream = await client.stream_chat(talk, **params)
                found = [["", (), None], ["", (), None]]
                async for piece in stream:
                    choice = found[piece.index]
                    choice[0] += piece.text
                    choice[1] += piece.token_ids
                    choice[2] = piece.finish_reason or choice[2]
                assert [tuple(c) for c in found] == wanted
                assert proxy.connections == before + 3
            await client.aclose()

    try:
        asyncio.run(main())
    finally:
        served.chat_template.close()


def test_silence_is_a_broken_stream(make_engine: Any, serve_engine: Any) -> None:
    retry = Retry(first_s=1e-3, silence_s=1.0, seed=0)
    want = expected(make_engine(), SETTINGS["greedy"])

    async def main() -> None:
        async with behind([serve_engine(make_engine())[0]]) as (proxy, url):
            proxy.plan([Fault(after=2000, stall=True)])
            pieces, _ = await read(url, retry=retry, **SETTINGS["greedy"])
            assert "".join(p.text for p in pieces) == want.text
            assert proxy.connections == 2
            proxy.plan([Fault(after=2000, stall=True)])
            with pytest.raises(StreamBroken):
                await read(url, retry=retry, ignore_eos=True)

    asyncio.run(main())


def test_nobody_at_the_address_is_said_within_the_deadline() -> None:
    async def main() -> None:
        async with AsyncClient("http://127.0.0.1:9", retry=Retry(attempts=3, first_s=1e-3)) as c:
            with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
                await c.complete("x", model="tiny")

    asyncio.run(main())
