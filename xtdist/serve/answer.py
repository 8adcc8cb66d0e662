"""An answer as it grows: what completions, chat and infilling have in common.

A :class:`Form` says how one of them is written. Nothing else differs: how outputs are collected,
chunks are made and tokens are counted is here.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from xtdist.decode.outputs import Output
from xtdist.decode.params import GenerationParams
from xtdist.serve.config import LimitsConfig
from xtdist.serve.errors import ApiError
from xtdist.serve.events import EventStream, WholeAnswer
from xtdist.serve.gate import Caller
from xtdist.serve.job import Job, Piece
from xtdist.serve.protocol.base import StreamRequest, Usage, Wire
from xtdist.serve.served import Served

T = TypeVar("T")


class Growing(Protocol):
    """One choice of an answer.

    Attributes:
        generated: tokens that it has by now.
        ready: whether what it has may be shown; false only while something that must come first
            has not come.
    """

    generated: int

    @property
    def ready(self) -> bool: ...

    def take(self, output: Output) -> bool:
        """Add an output; whether there is something new to show."""
        ...

    def release(self) -> Wire:
        """Everything since the last release, as it is sent."""
        ...


class Form(Protocol):
    """How the answers of one kind are written.

    Attributes:
        prefix: of their ids.
        choices: of all prompts, prompt by prompt, as many of each.
        prompt_tokens: of all prompts.
    """

    prefix: str
    choices: Sequence[Growing]
    prompt_tokens: int

    def message(self, **fields: Any) -> Wire:
        """A whole answer or a chunk. The fields: ``id``, ``created``, ``model``,
        ``system_fingerprint``, ``choices`` and, if it should be in it, ``usage``."""
        ...


class Answer:
    """The answer to one request. JSON comes out as bytes: the fields that were set, null or not."""

    def __init__(
        self, body: StreamRequest, form: Form, *, served: Served, job: Job, caller: Caller
    ) -> None:
        self.body = body
        self.served = served
        self.job = job
        self.caller = caller
        self.id = f"{form.prefix}-{body.request_id or uuid.uuid4().hex}"
        self._form = form
        self._head = {
            "id": self.id,
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": f"xt-{served.digest[:16]}",
        }
        self._unsent: dict[int, None] = {}
        self._around: tuple[bytes, bytes] | None = None

    def close(self) -> None:
        """Abort what has not finished, give back tokens that were not used. Harmless afterwards and
        twice."""
        self.served.thread.cancel(self.job)
        self.caller.settle(self._used())

    async def whole(self) -> bytes:
        """The answer, once it is complete."""
        async for pieces in self.job.pieces():
            self._take(pieces)
        return self._dump(range(len(self._form.choices)), usage=self._usage())

    async def chunks(self) -> AsyncIterator[bytes]:
        """Chunks as the engine makes them; joined they are the whole answer."""
        always, counts = self.body.counts_always, self.body.counts_usage
        async for pieces in self.job.pieces():
            grown = self._take(pieces)
            if grown and always:
                yield self._dump(grown, usage=self._usage())
            elif grown and counts:
                yield self._dump(grown, usage=None)
            elif grown:
                yield self._dump(grown)
        if counts:
            yield self._dump((), usage=self._usage())

    def _take(self, pieces: list[Piece]) -> list[int]:
        """Add pieces; the choices that have something to show."""
        choices, unsent = self._form.choices, self._unsent
        each = len(choices) // len(self.job.prompts)
        for piece in pieces:
            index = piece.prompt * each + piece.output.index
            if choices[index].take(piece.output):
                unsent[index] = None
        grown = [i for i in unsent if choices[i].ready]
        for index in grown:
            del unsent[index]
        return grown

    def _dump(self, indices: Sequence[int], **usage: Usage | None) -> bytes:
        """What stands around the choices is the same in all ordinary chunks, and made once."""
        ordinary = not any(usage.values())
        around = self._around if ordinary else None
        if around is None:
            message = _json(self._form.message(**self._head, choices=[], **usage))
            before, _, after = message.partition(b'"choices":[]')
            around = before + b'"choices":[', b"]" + after
            self._around = around if ordinary else self._around
        choices = b",".join([_json(self._form.choices[i].release()) for i in indices])
        return around[0] + choices + around[1]

    def _used(self) -> int:
        """Tokens that the engine has worked on, at most. Of beams and candidates only those that
        win are seen: the others count as long as the longest of these, and as ``max_tokens`` while
        there is no winner."""
        if self.job.started is None:
            return 0
        choices, prompts = self._form.choices, len(self.job.prompts)
        each, unseen = len(choices) // prompts, 0
        for i in range(prompts):
            params = self.job.params_of(i)
            if isinstance(params, GenerationParams) and params.width > each:
                seen = [c.generated for c in choices[i * each : (i + 1) * each]]
                longest = max(seen) if self.job.over else params.max_tokens
                unseen += longest * params.width - sum(seen)
        return self._usage().total_tokens + unseen

    def _usage(self) -> Usage:
        return Usage.of(self._form.prompt_tokens, sum(c.generated for c in self._form.choices))


def _json(wire: Wire) -> bytes:
    """What was set, null or not."""
    return wire.__pydantic_serializer__.to_json(wire, exclude_unset=True)


async def respond(request: Request, answer: Answer, limits: LimitsConfig) -> Response:
    """Have the engine make ``answer`` and send it, whole or as a stream.

    Raises:
        ApiError: refused, overloaded, late or failed, before the first byte of an answer.
    """
    answer.served.thread.submit(answer.job)
    try:
        if answer.body.stream:
            chunks = answer.chunks()
            first = await _while_connected(request, anext(chunks))
            return EventStream(
                first,
                chunks,
                close=answer.close,
                cut=partial(answer.served.thread.cut, answer.job),
                send_timeout_s=limits.send_timeout_s,
            )
        whole = await _while_connected(request, answer.whole())
        answer.close()
    except BaseException:
        answer.close()
        raise
    return WholeAnswer(whole, send_timeout_s=limits.send_timeout_s)


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, unless the client goes away first."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "the client closed the connection", code="client_closed")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
