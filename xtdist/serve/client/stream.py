"""A stream that goes on where it was broken, if the same request gives the same tokens.

The draws of a request with a seed, and of one at temperature 0, depend on nothing but the request
and the weights. So a broken stream is asked for again, from any replica: with the tokens received
so far given back to the server (``resume_tokens``), which takes them instead of drawing them, or,
where that is not offered, from the start. Either way the server sends the stream from its
beginning; what is known already is compared and skipped, by token and by character.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from xtdist.serve.client.answer import Answer, Choice, Differs, Received
from xtdist.serve.client.errors import ClientError, RequestError, StreamBroken, WeightsChanged
from xtdist.serve.client.wire import Wire, new_id

COMPLETIONS = "/v1/completions"
INFILL = "/v1/infill"
_FROM_THE_START = ("logprobs", "prompt_logprobs", "echo", "truncate_prompt_tokens")


class AsyncStream:
    """What a stream adds, chunk by chunk, as :class:`Choice`. ``answer`` is all of it so far.

    Raises, while it is read:
        RequestError: refused, or ended by the server with an error, before anything came.
        StreamBroken: broken afterwards; what came is in it.
        Unreachable: nothing came within the deadline.
    """

    def __init__(self, wire: Wire, path: str, body: Mapping[str, Any]) -> None:
        self._wire, self._path = wire, path
        self._body = {**body, "stream": True, "return_token_ids": True}
        self._received = Received()
        self._resumes = path == COMPLETIONS
        self._pieces = self._run()

    @property
    def answer(self) -> Answer:
        return self._received.answer()

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Choice:
        return await anext(self._pieces)

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave the stream; the server then drops the request."""
        await self._pieces.aclose()

    async def _run(self) -> AsyncGenerator[Choice, None]:
        attempts, name = self._wire.attempts(), new_id()
        while True:
            body = self._next_body()
            try:
                async with (
                    self._wire.events(
                        self._path, body, name=name, left_s=attempts.left_s
                    ) as events,
                    aclosing(self._new(events)) as pieces,
                ):
                    async for piece in pieces:
                        attempts.progress()
                        yield piece
                return
            except StreamBroken:
                raise
            except ClientError as e:
                if self._complete:
                    return
                if self._falls_back(e, body):
                    continue
                broken = self._broken(e) if self._received.started else None
                if broken is not None and not self._deterministic:
                    raise broken from e
                await attempts.wait(e, otherwise=broken)

    async def _new(self, events: AsyncIterator[Mapping[str, Any]]) -> AsyncGenerator[Choice, None]:
        """What one sending of the stream adds."""
        received = self._received
        received.begin_again()
        async for tree in events:
            if received.started and tree.get("system_fingerprint") != received.fingerprint:
                raise WeightsChanged(
                    "the server's weights changed during the stream; ask again from the start",
                    received.answer(),
                )
            try:
                pieces = received.take(tree)
            except Differs:
                raise self._broken("asked again, the server gave another text") from None
            except (KeyError, TypeError, AttributeError):
                raise self._broken("the server sent a chunk of another form") from None
            for piece in pieces:
                yield piece
        if not received.ended:
            raise self._broken("it was said to be done, but a choice has no end")

    def _next_body(self) -> dict[str, Any]:
        """The request, with the tokens that are known if the server can go on from them."""
        received, body = self._received, self._body
        one = received.choices.get(0) if len(received.choices) == 1 else None
        prompt = received.prompt_token_ids
        if not self._resumes or one is None or not one.token_ids or prompt is None:
            return body
        ids = one.token_ids
        more = any(body.get(k) not in (None, False) for k in _FROM_THE_START)
        if more or len(ids) >= body.get("max_tokens", 16):
            return body
        return {**body, "prompt": [*prompt, *ids], "resume_tokens": len(ids)}

    def _falls_back(self, error: ClientError, body: Mapping[str, Any]) -> bool:
        """Whether the server can't resume this request, so that it is asked for from the start."""
        refused = isinstance(error, RequestError) and error.status == 400
        if not ("resume_tokens" in body and refused):
            return False
        self._resumes = False
        return True

    @property
    def _complete(self) -> bool:
        """Whether all that was asked for had come before the connection broke."""
        options = self._body.get("stream_options") or {}
        prompt: Any = self._body.get("prompt")
        lists = isinstance(prompt, list) and not all(isinstance(x, int) for x in prompt)
        wanted = (len(prompt) if lists else 1) * (self._body.get("n") or 1)
        whole = self._received.ended and len(self._received.choices) == wanted
        return whole and not options.get("include_usage")

    @property
    def _deterministic(self) -> bool:
        """Whether the same request gives the same tokens. The order in which masks are filled is
        drawn, too."""
        cold = self._body.get("temperature") == 0 and self._path != INFILL
        return cold or self._body.get("seed") is not None

    def _broken(self, cause: ClientError | str) -> StreamBroken:
        why = "" if self._deterministic else "; give a seed for streams that can be resumed"
        return StreamBroken(f"the stream broke: {cause}{why}", self._received.answer())
