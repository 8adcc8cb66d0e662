"""How answers are sent, whatever they are about: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable

from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from xtdist.serve.errors import ApiError, internal, outline

log = logging.getLogger(__name__)


class WholeAnswer(Response):
    """JSON at once; a client that does not take it in ``send_timeout_s`` is cut off, so that it
    does not hold what its request counts for."""

    def __init__(self, content: bytes, *, send_timeout_s: float) -> None:
        super().__init__(content, media_type="application/json")
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            raise ClientDisconnect from None


class EventStream(StreamingResponse):
    """Frames until ``[DONE]``, or until one with an error: then there is no ``[DONE]``.

    Args:
        first: data of the first frame, ready before the answer begins.
        rest: data of the others; what it raises becomes the frame with the error.
        close: called once at the end, however the stream ends.
        cut: called before it when the client reads too slowly.
        send_timeout_s: for one frame to be taken; a client that reads slower is cut off.
    """

    def __init__(
        self,
        first: bytes,
        rest: AsyncIterator[bytes],
        *,
        close: Callable[[], None],
        cut: Callable[[], None] = lambda: None,
        send_timeout_s: float,
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_frames(first, rest), media_type="text/event-stream", headers=headers)
        self._close = close
        self._cut = cut
        self._send_timeout_s = send_timeout_s
        self._sending_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def within_time(message: Message) -> None:
            self._sending_since = loop.time()
            await send(message)
            self._sending_since = None

        loop, writing = asyncio.get_running_loop(), asyncio.current_task()
        assert writing is not None
        watching = asyncio.create_task(self._watch(writing))
        try:
            await super().__call__(scope, receive, within_time)
        except asyncio.CancelledError:
            if not watching.done():
                raise
            writing.uncancel()
            self._cut()
            raise ClientDisconnect from None
        finally:
            watching.cancel()
            self._close()

    async def _watch(self, writing: asyncio.Task[object]) -> None:
        """End ``writing`` when the client does not take a frame: one timer for all of them."""
        loop = asyncio.get_running_loop()
        while True:
            since = self._sending_since
            late_s = 0.0 if since is None else loop.time() - since
            if late_s >= self._send_timeout_s:
                writing.cancel()
                return
            await asyncio.sleep(self._send_timeout_s - late_s)


async def _frames(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield _frame(first)
    try:
        async for data in rest:
            yield _frame(data)
    except ApiError as e:
        yield _frame(json.dumps(e.body()).encode())
    except Exception as e:
        log.error("a stream failed\n%s", outline(e))
        yield _frame(json.dumps(internal().body()).encode())
    else:
        yield _frame(b"[DONE]")


def _frame(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
