"""The client for everybody else: the asynchronous one, run in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import httpx

from xtdist.serve.client.aio import AsyncClient, Prompt
from xtdist.serve.client.answer import Answer, Choice
from xtdist.serve.client.retry import Retry
from xtdist.serve.client.stream import AsyncStream

T = TypeVar("T")


class Client:
    """:class:`AsyncClient` without ``await``: same methods, same parameters, same errors.

    Any number of threads may share one, and it works where an event loop runs already (notebooks).

    Example:
        >>> client = Client("http://127.0.0.1:8000")  # doctest: +SKIP
        >>> client.complete("import ", num_beams=4).text  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = AsyncClient(url, api_key=api_key, retry=retry, transport=transport)
        self._loop = _Loop()
        self._end = weakref.finalize(self, _close, self._loop, self._client)

    def close(self) -> None:
        """Close the connections. Twice is once."""
        self._end()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def models(self) -> list[dict[str, Any]]:
        return self._loop.run(self._client.models())

    def complete(self, prompt: Prompt, *, model: str | None = None, **params: Any) -> Answer:
        return self._loop.run(self._client.complete(prompt, model=model, **params))

    def stream(self, prompt: Prompt, *, model: str | None = None, **params: Any) -> Stream:
        return self._stream(self._client.stream(prompt, model=model, **params))

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, model: str | None = None, **params: Any
    ) -> Answer:
        return self._loop.run(self._client.chat(messages, model=model, **params))

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], *, model: str | None = None, **params: Any
    ) -> Stream:
        return self._stream(self._client.stream_chat(messages, model=model, **params))

    def infill(self, *, model: str | None = None, **params: Any) -> Answer:
        return self._loop.run(self._client.infill(model=model, **params))

    def stream_infill(self, *, model: str | None = None, **params: Any) -> Stream:
        return self._stream(self._client.stream_infill(model=model, **params))

    def tokenize(self, text: str, *, model: str | None = None) -> list[int]:
        return self._loop.run(self._client.tokenize(text, model=model))

    def detokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        return self._loop.run(self._client.detokenize(tokens, model=model))

    def _stream(self, opening: Coroutine[Any, Any, AsyncStream]) -> Stream:
        return Stream(self, self._loop, self._loop.run(opening))


class Stream:
    """:class:`AsyncStream` without ``await``. Leave it with ``close`` or a ``with`` if it is not
    read to its end. It keeps its client, which would otherwise close when nobody else has it."""

    def __init__(self, client: Client, loop: _Loop, stream: AsyncStream) -> None:
        self._client, self._loop, self._stream = client, loop, stream

    @property
    def answer(self) -> Answer:
        return self._stream.answer

    def __iter__(self) -> Iterator[Choice]:
        return self

    def __next__(self) -> Choice:
        piece = self._loop.run(self._next())
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        self._loop.run(self._stream.aclose())

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def _next(self) -> Choice | None:
        return await anext(self._stream, None)


class _Loop:
    """An event loop in a daemon thread, which starts with the first use."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, in the calling thread. Ctrl-C there ends the work, too."""
        future = asyncio.run_coroutine_threadsafe(work, self._started())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    @property
    def started(self) -> bool:
        return self._loop is not None

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                name = "xtdist-client"
                threading.Thread(target=_run, args=(self._loop,), name=name, daemon=True).start()
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _close(loop: _Loop, client: AsyncClient) -> None:
    if loop.started:
        loop.run(client.aclose())
        loop.stop()
