"""The client against a server that is a list of frames."""

from __future__ import annotations

import asyncio
import gc
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
    RequestError,
    Retry,
    StreamBroken,
    WeightsChanged,
)
from xtdist.serve.client.frames import Frames

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


def test_a_stream_that_is_refused_is_asked_for_again() -> None:
    script = Script()
    refusals = iter([httpx.Response(n) for n in (503, 429, 500)])
    answer = script.handle_async_request

    async def refuse_first(request: httpx.Request) -> httpx.Response:
        return next(refusals, None) or await answer(request)

    script.handle_async_request = refuse_first
    assert stream(script)[1].text == WHOLE.text


def test_a_stream_keeps_its_client_open() -> None:
    pieces = Client(URL, transport=Script(), retry=FAST).stream("xyz", model="m", seed=1)
    gc.collect()
    assert "".join(piece.text for piece in pieces) == WHOLE.text


def test_a_stream_that_is_left_closes_its_connection() -> None:
    script = Script()
    with Client(URL, transport=script, retry=FAST) as client:
        with client.stream("xyz", model="m") as pieces:
            assert next(pieces).text == "a "
            assert script.open == 1
        assert script.open == 0
