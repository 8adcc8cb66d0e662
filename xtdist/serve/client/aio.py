"""The client for code that runs in an event loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from xtdist.serve.client.answer import Answer, read_answer
from xtdist.serve.client.errors import ClientError
from xtdist.serve.client.retry import Retry
from xtdist.serve.client.stream import COMPLETIONS, INFILL, AsyncStream
from xtdist.serve.client.wire import Wire

CHAT = "/v1/chat/completions"
Prompt = str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]


class AsyncClient:
    """A server's models, asked over HTTP.

    Every request is repeated while that can help (see :class:`Retry`); streams whose tokens are
    fixed by the request (``temperature=0``, or a ``seed``) go on after a break without a missing or
    doubled token. All parameters of the endpoints are keywords here, under their names there.
    Use it in one event loop.

    Args:
        url: of the server, without ``/v1``.
        api_key: sent as ``Authorization: Bearer``.
        transport: for tests, instead of the network.

    Example:
        >>> async with AsyncClient("http://127.0.0.1:8000") as client:  # doctest: +SKIP
        ...     async for piece in await client.stream("def ", seed=1):
        ...         print(piece.text, end="")
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._wire = Wire(
            url.rstrip("/"), api_key=api_key, retry=retry or Retry(), transport=transport
        )
        self._only: str | None = None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._wire.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """The cards of the served models; ``id`` is the name."""
        cards: list[dict[str, Any]] = (await self._wire.call("GET", "/v1/models"))["data"]
        return cards

    async def complete(self, prompt: Prompt, *, model: str | None = None, **params: Any) -> Answer:
        """Continue a prompt; beams come best first.

        Raises:
            ClientError: refused, or no answer within the deadline.
        """
        body = await self._body({"prompt": prompt, **params}, model)
        return read_answer(await self._wire.call("POST", COMPLETIONS, body))

    async def stream(
        self, prompt: Prompt, *, model: str | None = None, **params: Any
    ) -> AsyncStream:
        """The same as a stream."""
        body = await self._body({"prompt": prompt, **params}, model)
        return AsyncStream(self._wire, COMPLETIONS, body)

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], *, model: str | None = None, **params: Any
    ) -> Answer:
        """Answer a conversation, by the model's own template."""
        body = await self._body({"messages": list(messages), **params}, model)
        return read_answer(await self._wire.call("POST", CHAT, body))

    async def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], *, model: str | None = None, **params: Any
    ) -> AsyncStream:
        """The same as a stream."""
        body = await self._body({"messages": list(messages), **params}, model)
        return AsyncStream(self._wire, CHAT, body)

    async def infill(self, *, model: str | None = None, **params: Any) -> Answer:
        """Fill the masks of a text with a model that does that."""
        return read_answer(await self._wire.call("POST", INFILL, await self._body(params, model)))

    async def stream_infill(self, *, model: str | None = None, **params: Any) -> AsyncStream:
        """The same as a stream."""
        return AsyncStream(self._wire, INFILL, await self._body(params, model))

    async def tokenize(self, text: str, *, model: str | None = None) -> list[int]:
        """The token ids of a text."""
        body = await self._body({"prompt": text}, model)
        return list((await self._wire.call("POST", "/tokenize", body))["tokens"])

    async def detokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        """The text of token ids."""
        body = await self._body({"tokens": list(tokens)}, model)
        return str((await self._wire.call("POST", "/detokenize", body))["prompt"])

    async def _body(self, params: dict[str, Any], model: str | None) -> dict[str, Any]:
        return {"model": model or await self._only_model(), **params}

    async def _only_model(self) -> str:
        """The name of the model, if there is one only; asked once."""
        if self._only is None:
            names = [card["id"] for card in await self.models()]
            if len(names) != 1:
                raise ClientError(f"model: name one of {', '.join(names) or 'none at all'}")
            self._only = names[0]
        return self._only
