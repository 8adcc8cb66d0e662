"""Server-sent events towards a client that is slow, goes away, or is told of a failure."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.requests import ClientDisconnect

from xtdist.serve.errors import deadline_exceeded
from xtdist.serve.events import EventStream, WholeAnswer

SCOPES = [{"type": "http", "asgi": {"spec_version": v}} for v in ("2.3", "2.4")]


def stream(rest, *, scope, send, send_timeout_s=20.0):
    """Run a stream; how often it was closed, and what it raised."""
    closed = []

    async def run():
        response = EventStream(
            b"1", rest, close=lambda: closed.append(1), send_timeout_s=send_timeout_s
        )
        await response(scope, asyncio.Event().wait, send)

    async def main():
        await asyncio.wait_for(run(), 30)
        return asyncio.all_tasks() - {asyncio.current_task()}

    try:
        left, error = asyncio.run(main()), None
    except Exception as e:
        left, error = set(), e
    assert not left
    return len(closed), error


def collector():
    frames = []

    async def send(message):
        frames.append(message.get("body", b""))

    return frames, send


@pytest.mark.parametrize("scope", SCOPES)
def test_a_stream_is_its_data_frame_by_frame_and_done(scope):
    async def rest():
        yield b"2"
        yield b"3"

    frames, send = collector()
    assert stream(rest(), scope=scope, send=send) == (1, None)
    assert b"".join(frames) == b"data: 1\n\ndata: 2\n\ndata: 3\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [(deadline_exceeded(2.0), "deadline_exceeded"), (ValueError("canary"), "internal_error")],
)
def test_a_stream_that_fails_ends_with_the_error_and_without_done(error, code, caplog):
    async def rest():
        yield b"2"
        raise error

    frames, send = collector()
    assert stream(rest(), scope=SCOPES[0], send=send) == (1, None)
    *_, last, end = b"".join(frames).split(b"\n\n")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == code
    assert end == b""
    assert b"[DONE]" not in b"".join(frames)
    assert "canary" not in caplog.text + str(frames)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_client_that_takes_no_frame_for_too_long_is_cut_off(scope):
    async def rest():
        while True:
            yield b"2"

    taken = []

    async def send(message):
        taken.append(message)
        if len(taken) > 3:
            await asyncio.Event().wait()

    closed, error = stream(rest(), scope=scope, send=send, send_timeout_s=0.05)
    assert closed == 1
    assert isinstance(error, ClientDisconnect)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_client_that_reads_is_not_cut_off_while_nothing_comes(scope):
    async def rest():
        for _ in range(3):
            await asyncio.sleep(0.1)
            yield b"2"

    frames, send = collector()
    assert stream(rest(), scope=scope, send=send, send_timeout_s=0.05) == (1, None)
    assert frames[-2:] == [b"data: [DONE]\n\n", b""]


@pytest.mark.parametrize("scope", SCOPES)
def test_a_whole_answer_that_nobody_takes_is_given_up(scope):
    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def main():
        answer = WholeAnswer(b"{}", send_timeout_s=0.05)
        await asyncio.wait_for(answer(scope, asyncio.Event().wait, send), 30)

    with pytest.raises(ClientDisconnect):
        asyncio.run(main())
