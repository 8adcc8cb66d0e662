"""What the client repeats, when, and how it is used."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from xtdist.config import ConfigError
from xtdist.serve.client import Client, ClientError, RequestError, Retry, Unreachable
from xtdist.serve.client.retry import Attempts

URL = "http://server.test"
FAST = Retry(first_s=1e-4, longest_s=1e-3, deadline_s=20.0, attempts=4, seed=0)


def answering(*replies: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[Any]]:
    """These replies, the last one for ever; and the requests that came."""
    left, seen = list(replies), []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        reply = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)

    return httpx.MockTransport(answer), seen


GOOD = httpx.Response(
    200,
    json={
        "id": "c",
        "model": "m",
        "choices": [{"index": 0, "text": "yes", "finish_reason": "stop"}],
    },
)


def error(status: int, code: str | None = None, **headers: str) -> httpx.Response:
    body = {"error": {"message": "no", "code": code, "param": None}}
    return httpx.Response(status, json=body, headers=headers)


@pytest.mark.parametrize(
    ("reply", "sent"),
    [
        (httpx.ConnectError("refused"), 4),
        (httpx.ReadError("reset"), 4),
        (httpx.RemoteProtocolError("cut"), 4),
        (error(408, "body_timeout"), 4),
        (error(429), 4),
        (error(503, "queue_full"), 4),
        (httpx.Response(500, text="Internal Server Error"), 4),
        (httpx.Response(502, text="<html>"), 4),
        (error(500, "internal_error"), 2),
        (error(504, "deadline_exceeded", **{"x-should-retry": "false"}), 1),
        (error(503, **{"x-should-retry": "false"}), 1),
        (error(400), 1),
        (error(401, "invalid_api_key"), 1),
        (error(404, "model_not_found"), 1),
        (httpx.Response(302, headers={"location": "http://elsewhere.test"}), 1),
        (httpx.Response(200, text="no json"), 1),
    ],
)
def test_what_may_help_is_repeated_and_nothing_else(reply: Any, sent: int) -> None:
    transport, seen = answering(reply)
    with Client(URL, transport=transport, retry=FAST) as client, pytest.raises(ClientError):
        client.complete("x", model="m")
    assert len(seen) == sent
    assert {r.headers["x-request-id"] for r in seen} == {seen[0].headers["x-request-id"]}
    if sent == 4:
        transport, seen = answering(reply, reply, GOOD)
        with Client(URL, transport=transport, retry=FAST) as client:
            assert client.complete("x", model="m").text == "yes"
            client.complete("x", model="m")
        assert len(seen) == 4
        assert seen[2].headers["x-request-id"] != seen[3].headers["x-request-id"]


def test_the_key_is_sent_and_shown_nowhere() -> None:
    transport, seen = answering(error(401, "invalid_api_key"))
    client = Client(URL, api_key="xt-secret", transport=transport, retry=FAST)
    with client, pytest.raises(RequestError) as refused:
        client.models()
    assert seen[0].headers["authorization"] == "Bearer xt-secret"
    told = repr(client) + repr(refused.value) + str(vars(refused.value))
    assert "secret" not in told


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def waits(retry: Retry, failure: ClientError, *, number: int = 0) -> tuple[list[float], Clock]:
    clock = Clock()

    async def fail() -> None:
        attempts = Attempts(retry, number, clock=lambda: clock.now, sleep=clock.sleep)
        while True:
            await attempts.wait(failure)

    with pytest.raises(type(failure)):
        asyncio.run(fail())
    return clock.waits, clock


def test_waits_double_up_to_the_longest_and_are_drawn_from_the_seed() -> None:
    retry = Retry(attempts=9, first_s=1.0, longest_s=10.0, deadline_s=1000.0, seed=1)
    found, _ = waits(retry, Unreachable(""))
    assert len(found) == 8
    for wait, most in zip(found, [1, 2, 4, 8, 10, 10, 10, 10], strict=True):
        assert most / 2 <= wait <= most
    assert len({w / most for w, most in zip(found[4:], [10] * 4, strict=True)}) == 4
    assert waits(retry, Unreachable(""))[0] == found
    assert waits(retry, Unreachable(""), number=1)[0] != found


def test_no_wait_is_shorter_than_the_server_asks() -> None:
    retry = Retry(attempts=5, first_s=1.0, longest_s=10.0, seed=1)
    found, _ = waits(retry, RequestError("", status=503, retry_after_s=7.0))
    assert found == [7.0, 7.0, 7.0, max(7.0, found[3])]


@pytest.mark.parametrize("asked", [None, 50.0])
def test_nobody_waits_past_the_deadline(asked: float | None) -> None:
    retry = Retry(attempts=999, first_s=1.0, longest_s=4.0, deadline_s=30.0, seed=1)
    found, clock = waits(retry, RequestError("", status=503, retry_after_s=asked))
    assert clock.now < 30
    assert found == [] if asked else clock.now > 20


def test_the_wait_a_server_asks_for_is_read_from_seconds_and_dates() -> None:
    dates = {
        "retry-after": "Mon, 01 Jan 2024 00:00:09 GMT",
        "date": "Mon, 01 Jan 2024 00:00:02 GMT",
    }
    for headers, seconds in ([{"retry-after": "3"}, 3], [dates, 7], [{"retry-after": "x"}, None]):
        transport, _ = answering(error(400, **headers))
        with Client(URL, transport=transport) as client, pytest.raises(RequestError) as refused:
            client.models()
        assert refused.value.retry_after_s == seconds


def test_an_answer_that_takes_too_long_is_given_up_at_the_deadline() -> None:
    async def silent(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    retry = Retry(deadline_s=0.05)
    client = Client(URL, transport=httpx.MockTransport(silent), retry=retry)
    with client, pytest.raises(Unreachable):
        client.models()


def test_it_works_inside_of_an_event_loop_and_is_shared_by_threads() -> None:
    transport, _ = answering(GOOD)

    async def notebook() -> list[str]:
        with Client(URL, transport=transport, retry=FAST) as client:
            assert client.complete("x", model="m").text == "yes"
            ask = lambda: client.complete("x", model="m").text  # noqa: E731
            return await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(8)))

    assert asyncio.run(notebook()) == ["yes"] * 8


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="url: got"):
        Client(url)


def test_the_only_model_need_not_be_named() -> None:
    cards = httpx.Response(200, json={"data": [{"id": "one"}]})
    transport, seen = answering(cards, GOOD)
    with Client(URL, transport=transport, retry=FAST) as client:
        client.complete("x")
    assert json.loads(seen[1].content)["model"] == "one"
    transport, _ = answering(httpx.Response(200, json={"data": [{"id": "one"}, {"id": "two"}]}))
    with (
        Client(URL, transport=transport, retry=FAST) as client,
        pytest.raises(ClientError, match="name one of one, two"),
    ):
        client.complete("x")
