"""The client against a server that is a list of frames."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import httpx
import pytest

from xtdist.decode.stopping import Release, TextStream
from xtdist.serve.client import (
    AsyncClient,
    Client,
    ClientError,
    RequestError,
    Retry,
    StreamBroken,
    Unreachable,
    WeightsChanged,
)
from xtdist.serve.client.frames import Frames
from xtdist.serve.client.retry import Attempts

URL = "http://server.test"
FAST = Retry(first_s=1e-4, longest_s=1e-3, deadline_s=20.0, attempts=4, seed=0)
# Code points in two tokens, one that never ends, and stop strings that begin inside of a token.
PIECES = [b"a ", b"\xc3", b"\xa9y", b"\xe2\x82", b" x \xf0\x9f", b"\x98\x80ST", b"O", b"UT ST"]
PIECES += ["\u2028 ne".encode(), b" e", b"e pST", b"OP", b" more"]
TOKENS = list(range(len(PIECES)))
STOP = ("STOP", "ne er")
PROMPT = [91, 92, 93]


class Pieces:
    vocab_size = len(PIECES)

    def token_bytes(self, token_id: int, /) -> bytes:
        return PIECES[token_id]


def releases(given: int) -> Iterator[tuple[Release, bool]]:
    """What an engine shows of ``TOKENS``, the first ``given`` of which it takes at once."""
    stream, first = TextStream(Pieces(), stop=STOP), Release()
    for number, token in enumerate(TOKENS, 1):
        new = stream.push(token)
        first = first + new
        if number > given or stream.stopped:
            yield first, stream.stopped
            first = Release()
        if stream.stopped:
            return


WHOLE = Release()
for new, _ in releases(0):
    WHOLE = WHOLE + new


class Script(httpx.AsyncBaseTransport):
    """Answers every request with the stream, ``cuts`` of them broken after so many bytes."""

    def __init__(self, cuts: Iterable[int | None] = (), *, resumes: bool = True) -> None:
        self.cuts = iter(cuts)
        self.resumes = resumes
        self.fingerprints: Iterator[str] = iter(())
        self.bodies: list[dict[str, Any]] = []
        self.open = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        given = body.get("resume_tokens", 0)
        if given and not self.resumes:
            error = {"message": "unknown", "param": "resume_tokens", "code": "unknown_parameter"}
            return httpx.Response(400, json={"error": error})
        assert body["prompt"] == ("xyz" if not given else [*PROMPT, *TOKENS[:given]])
        self.open += 1
        data = self.data(given, next(self.fingerprints, "xt-1"))
        return httpx.Response(200, stream=_Cut(self, data, next(self.cuts, None)))

    def data(self, given: int, fingerprint: str) -> bytes:
        frames = []
        for new, over in releases(given):
            choice = {
                "index": 0,
                "text": new.text,
                "token_ids": new.token_ids,
                "finish_reason": "stop" if over else None,
            }
            if not frames:
                choice["prompt_token_ids"] = PROMPT
            tree = {"id": "c", "model": "m", "system_fingerprint": fingerprint}
            frames.append(json.dumps({**tree, "choices": [choice]}, ensure_ascii=False))
        return "".join(f"data: {f}\n\n" for f in [*frames, "[DONE]"]).encode()


class _Cut(httpx.AsyncByteStream):
    def __init__(self, script: Script, data: bytes, cut: int | None) -> None:
        self.script, self.data, self.cut = script, data, cut

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.data[: self.cut]
        if self.cut is not None:
            raise httpx.ReadError("cut")

    async def aclose(self) -> None:
        self.script.open -= 1


async def read(script: httpx.AsyncBaseTransport, **params: Any) -> Any:
    """(pieces, answer) of a stream."""
    async with AsyncClient(URL, transport=script, retry=FAST) as client:
        pieces = await client.stream("xyz", model="m", max_tokens=99, **params)
        return [p async for p in pieces], pieces.answer


def stream(script: httpx.AsyncBaseTransport, **params: Any) -> Any:
    return asyncio.run(read(script, **params))


def test_events_are_the_same_however_their_bytes_are_cut() -> None:
    data = 'data: {"a": "é\u2028\x85x"}\r\n\r\n: a comment\n\ndata:1\ndata: 2\n\ndata: [DONE]\n\n'
    raw = data.encode()
    for cut in range(len(raw)):
        frames = Frames()
        events = frames.feed(raw[:cut]) + frames.feed(raw[cut:])
        assert events == ['{"a": "é\u2028\x85x"}', "1\n2", "[DONE]"]


def test_an_event_that_never_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        Frames().feed(b"data: " + b"x" * 2**24)


def test_the_script_shows_text_ahead_of_its_tokens() -> None:
    """What the tests below rest on."""
    text, ids, ahead = "", 0, 0
    for new, _ in releases(0):
        text, ids = text + new.text, ids + len(new.token_ids)
        ahead += len(text) > len(b"".join(PIECES[:ids]).decode(errors="replace"))
    assert WHOLE.text == "a éy\ufffd x 😀STOUT ST\u2028 ne ee p"
    assert ahead >= 2
    assert list(WHOLE.token_ids) == TOKENS[:11]


@pytest.mark.parametrize("resumes", [True, False])
def test_a_stream_cut_at_any_byte_goes_on_without_a_missing_or_doubled_token(resumes: bool) -> None:
    length = len(Script().data(0, "xt-1"))

    async def cut_everywhere() -> None:
        for cut in range(0, length - 1, 5):
            script = Script([cut], resumes=resumes)
            pieces, answer = await read(script, seed=5)
            assert "".join(p.text for p in pieces) == answer.text == WHOLE.text
            ids = tuple(t for p in pieces for t in p.token_ids)
            assert ids == answer.choices[0].token_ids == WHOLE.token_ids
            assert [p.finish_reason for p in pieces if p.finish_reason] == ["stop"]
            assert not script.open

    asyncio.run(cut_everywhere())


def test_a_stream_cut_again_and_again_goes_on() -> None:
    draws = random.Random(0)
    length = len(Script().data(0, "xt-1"))
    for _ in range(50):
        script = Script([draws.randrange(length - 20) for _ in range(3)])
        pieces, _ = stream(script, temperature=0)
        assert "".join(p.text for p in pieces) == WHOLE.text
        assert tuple(t for p in pieces for t in p.token_ids) == WHOLE.token_ids
        resumed = [b.get("resume_tokens", 0) for b in script.bodies]
        assert resumed == sorted(resumed)


def test_the_tokens_received_are_given_back_to_be_taken() -> None:
    script = Script([len(Script().data(0, "xt-1")) // 2])
    stream(script, seed=5)
    first, second = script.bodies
    assert first["return_token_ids"] is True
    assert 0 < second["resume_tokens"] < len(TOKENS)
    assert {k: v for k, v in second.items() if k not in ("prompt", "resume_tokens")} == {
        k: v for k, v in first.items() if k != "prompt"
    }


def test_a_stream_that_is_drawn_freely_says_what_came() -> None:
    script = Script([len(Script().data(0, "xt-1")) // 2])
    with pytest.raises(StreamBroken, match="give a seed") as broken:
        stream(script)
    received = broken.value.received
    assert received.text
    assert WHOLE.text.startswith(received.text)
    assert received.choices[0].finish_reason is None
    assert len(script.bodies) == 1


def test_a_free_stream_that_had_not_begun_is_asked_for_again() -> None:
    script = Script([0, 10])
    pieces, _ = stream(script)
    assert "".join(p.text for p in pieces) == WHOLE.text
    assert len(script.bodies) == 3


def test_other_weights_are_not_mixed_in() -> None:
    script = Script([len(Script().data(0, "xt-1")) // 2])
    script.fingerprints = iter(["xt-1", "xt-2"])
    with pytest.raises(WeightsChanged) as changed:
        stream(script, seed=5)
    assert changed.value.received.fingerprint == "xt-1"
    assert WHOLE.text.startswith(changed.value.received.text)


def test_weights_may_change_before_anything_was_shown() -> None:
    script = Script([10])
    script.fingerprints = iter(["xt-1", "xt-2"])
    assert stream(script, seed=5)[1].fingerprint == "xt-2"


def test_another_text_the_second_time_is_an_error() -> None:
    script = Script([len(Script().data(0, "xt-1")) // 2], resumes=False)
    whole = script.data
    sendings = iter([b"a ", b"b "])
    script.data = lambda *args: whole(*args).replace(b'"a ', b'"' + next(sendings))
    with pytest.raises(StreamBroken, match="another text"):
        stream(script, seed=5)


@pytest.mark.parametrize("seed", [None, 5])
def test_an_end_that_is_not_said_is_an_error(seed: int | None) -> None:
    """The connection is closed in order, after a whole event."""

    def quiet(request: httpx.Request) -> httpx.Response:
        data = Script().data(0, "xt-1").split(b"\n\n")[0] + b"\n\n"
        return httpx.Response(200, content=data)

    with pytest.raises(StreamBroken, match="without \\[DONE\\]"):
        stream(httpx.MockTransport(quiet), seed=seed)


def test_a_done_that_no_choice_has_earned_is_an_error() -> None:
    def hasty(request: httpx.Request) -> httpx.Response:
        data = Script().data(0, "xt-1").split(b"\n\n")[0] + b"\n\ndata: [DONE]\n\n"
        return httpx.Response(200, content=data)

    with pytest.raises(StreamBroken, match="no end"):
        stream(httpx.MockTransport(hasty), seed=5)


def test_all_that_was_asked_for_is_whole_even_if_the_last_event_is_lost() -> None:
    script = Script([len(Script().data(0, "xt-1")) - len(b"data: [DONE]\n\n")])
    assert stream(script)[1].text == WHOLE.text
    assert len(script.bodies) == 1


def test_an_error_frame_is_the_error() -> None:
    def fails(request: httpx.Request) -> httpx.Response:
        first = Script().data(0, "xt-1").split(b"\n\n")[0]
        error = {"message": "too slow", "type": "invalid_request_error", "code": "slow_reader"}
        return httpx.Response(
            200, content=first + f"\n\ndata: {json.dumps({'error': error})}\n\n".encode()
        )

    with pytest.raises(StreamBroken, match="too slow") as broken:
        stream(httpx.MockTransport(fails), seed=5)
    assert isinstance(broken.value.__cause__, RequestError)
    assert broken.value.__cause__.code == "slow_reader"


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


def test_a_stream_that_is_refused_is_asked_for_again() -> None:
    script = Script()
    refusals = iter([error(503), error(429), httpx.Response(500)])
    answer = script.handle_async_request

    async def refuse_first(request: httpx.Request) -> httpx.Response:
        return next(refusals, None) or await answer(request)

    script.handle_async_request = refuse_first
    assert stream(script)[1].text == WHOLE.text


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


def test_a_stream_that_is_left_closes_its_connection() -> None:
    script = Script()
    with Client(URL, transport=script, retry=FAST) as client:
        with client.stream("xyz", model="m") as pieces:
            assert next(pieces).text == "a "
            assert script.open == 1
        assert script.open == 0


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    from xtdist.config import ConfigError

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
