"""One completion request, from checked JSON to an answer or a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from xtdist.serve.choice import GrowingChoice
from xtdist.serve.config import LimitsConfig
from xtdist.serve.errors import ApiError, internal
from xtdist.serve.job import Job, Piece
from xtdist.serve.limits import check_ids, check_length, check_request
from xtdist.serve.protocol import Completion, CompletionRequest, Usage, to_params
from xtdist.serve.served import Served

log = logging.getLogger(__name__)
T = TypeVar("T")


async def complete(
    request: Request, body: CompletionRequest, *, served: Served, limits: LimitsConfig
) -> Response:
    """Answer ``body``.

    Raises:
        ApiError: refused, overloaded, late or failed, before the first byte of an answer.
    """
    check_request(body, limits)
    check_ids(body, served.tokenizer.vocab_size)
    params = to_params(body)
    prompts = [await served.encode(p) for p in body.prompt]
    for ids in prompts:
        check_length(len(ids), body.max_tokens, served.max_seq_len)
    answer = Answer(body, served, Job(prompts, params, limits.request_timeout_s))
    served.thread.submit(answer.job)
    try:
        if body.stream:
            chunks = answer.chunks()
            first = await _while_connected(request, anext(chunks))
            return EventStream(answer, first, chunks)
        whole = await _while_connected(request, answer.whole())
    except BaseException:
        answer.close()
        raise
    return Response(answer.dump(whole), media_type="application/json")


class Answer:
    """The answer to one request as it grows."""

    def __init__(self, body: CompletionRequest, served: Served, job: Job) -> None:
        self.body = body
        self.served = served
        self.job = job
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.generated_tokens = 0
        echoes = [self._text(p) if body.echo else "" for p in body.prompt for _ in range(body.n)]
        self._choices = [GrowingChoice(echo=e) for e in echoes]

    def close(self) -> None:
        """Abort what has not finished. Harmless afterwards and twice."""
        self.served.thread.cancel(self.job)

    async def whole(self) -> Completion:
        async for pieces in self.job.pieces():
            self._take(pieces)
        return self._completion(range(len(self._choices)), self._usage())

    async def chunks(self) -> AsyncIterator[Completion]:
        """Chunks as the engine makes them; the texts joined are the whole answer's."""
        async for pieces in self.job.pieces():
            grown = self._take(pieces)
            if grown:
                yield self._completion(grown)
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield self._completion([], self._usage())

    def dump(self, completion: Completion) -> str:
        """JSON as OpenAI sends it. ``usage`` is null in the chunks before the last of a stream that
        asked for it, and absent in one that did not."""
        tree = completion.model_dump()
        options = self.body.stream_options
        if self.body.stream and not (options is not None and options.include_usage):
            del tree["usage"]
        for choice in tree["choices"]:
            if choice["score"] is None:
                del choice["score"]
        return json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    def _take(self, pieces: list[Piece]) -> list[int]:
        """Add pieces; the choices that have something to show."""
        grown: dict[int, None] = {}
        for piece in pieces:
            index = piece.prompt * self.body.n + piece.output.index
            self._choices[index].take(piece.output)
            self.generated_tokens += len(piece.output.token_ids)
            if piece.output.text or piece.output.logprobs or piece.output.finish_reason:
                grown[index] = None
        return list(grown)

    def _completion(self, indices: Any, usage: Usage | None = None) -> Completion:
        with_logprobs = self.body.logprobs is not None
        tokenizer = self.served.tokenizer
        return Completion(
            id=self.id,
            created=self.created,
            model=self.served.name,
            system_fingerprint=f"xt-{self.served.digest[:16]}",
            choices=[
                self._choices[i].release(i, tokenizer=tokenizer, logprobs=with_logprobs)
                for i in indices
            ],
            usage=usage,
        )

    def _usage(self) -> Usage:
        prompt_tokens = sum(map(len, self.job.prompts))
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=self.generated_tokens,
            total_tokens=prompt_tokens + self.generated_tokens,
        )

    def _text(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self.served.tokenizer.decode(prompt)


class EventStream(StreamingResponse):
    """Server-sent events. A stream ends with ``[DONE]``, or with one error frame and without it:
    a client can always tell a whole answer from a broken one."""

    def __init__(self, answer: Answer, first: Completion, rest: AsyncIterator[Completion]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        frames = _frames(answer, first, rest)
        super().__init__(frames, media_type="text/event-stream", headers=headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()


async def _frames(
    answer: Answer, first: Completion, rest: AsyncIterator[Completion]
) -> AsyncIterator[str]:
    yield f"data: {answer.dump(first)}\n\n"
    try:
        async for chunk in rest:
            yield f"data: {answer.dump(chunk)}\n\n"
    except ApiError as e:
        yield f"data: {json.dumps(e.body())}\n\n"
    except Exception:
        log.exception("stream %s failed", answer.id)
        yield f"data: {json.dumps(internal().body())}\n\n"
    else:
        yield "data: [DONE]\n\n"


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
