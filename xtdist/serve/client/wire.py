"""One HTTP exchange at a time: errors become exceptions, events become trees."""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx

from xtdist.config import ConfigError
from xtdist.serve.client.errors import ClientError, RequestError, Unreachable
from xtdist.serve.client.frames import Frames
from xtdist.serve.client.retry import Attempts, Retry

_CONNECT_S = 10.0
_STATUS = {
    "authentication_error": 401,
    "permission_error": 403,
    "rate_limit_error": 429,
    "overloaded_error": 503,
    "server_error": 500,
}
Tree = Mapping[str, Any]


class Wire:
    """Requests to the server at ``url``."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        retry: Retry,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self.retry = retry
        self._numbers = itertools.count()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            base = httpx.URL(url)
        except (httpx.InvalidURL, TypeError):
            base = httpx.URL("")
        if base.scheme not in ("http", "https") or not base.host:
            raise ConfigError(f"url: got {url!r}; give it like http://127.0.0.1:8000")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self._http = httpx.AsyncClient(
            base_url=base, headers=headers, limits=limits, transport=transport
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    def attempts(self) -> Attempts:
        """Of a call that begins now."""
        return Attempts(self.retry, next(self._numbers))

    async def call(self, method: str, path: str, body: Tree | None = None) -> dict[str, Any]:
        """The whole answer to a request that may be repeated.

        Raises:
            ClientError: no answer within the deadline, or none that helps.
        """
        attempts, name = self.attempts(), new_id()
        while True:
            wait_s = min(self.retry.silence_s, attempts.left_s)
            try:
                return await self._once(method, path, body, name=name, wait_s=wait_s)
            except ClientError as e:
                await attempts.wait(e)

    async def _once(
        self, method: str, path: str, body: Tree | None, *, name: str, wait_s: float
    ) -> dict[str, Any]:
        try:
            async with asyncio.timeout(wait_s):
                request = self._request(method, path, body, name=name, silence_s=wait_s)
                reply = await self._http.send(request)
        except (httpx.RequestError, TimeoutError) as e:
            raise self._unreachable(e) from e
        return _checked(reply)

    @asynccontextmanager
    async def events(
        self, path: str, body: Tree, *, name: str, left_s: float
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The chunks of a stream until ``[DONE]``.

        Raises:
            RequestError: refused, or an error frame.
            Unreachable: no connection, silence, or an end without ``[DONE]``.
        """
        silence_s = min(self.retry.silence_s, left_s)
        request = self._request("POST", path, body, name=name, silence_s=silence_s)
        try:
            reply = await self._http.send(request, stream=True)
        except httpx.RequestError as e:
            raise self._unreachable(e) from e
        try:
            if reply.status_code != 200:
                await self._read(reply)
                _checked(reply)
            async with aclosing(self._trees(reply)) as trees:
                yield trees
        finally:
            await reply.aclose()

    async def _read(self, reply: httpx.Response) -> None:
        try:
            await reply.aread()
        except httpx.RequestError as e:
            raise self._unreachable(e) from e

    async def _trees(self, reply: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
        frames = Frames()
        try:
            async for chunk in reply.aiter_bytes():
                for data in frames.feed(chunk):
                    if data == "[DONE]":
                        return
                    tree = json.loads(data)
                    if "error" in tree:
                        raise _error_frame(tree["error"])
                    yield tree
        except httpx.RequestError as e:
            raise self._unreachable(e) from e
        except ValueError as e:
            raise Unreachable(f"{self._host}: the stream holds what is no event of ours") from e
        raise Unreachable(f"{self._host}: the stream ended without [DONE] and without an error")

    def _request(
        self, method: str, path: str, body: Tree | None, *, name: str, silence_s: float
    ) -> httpx.Request:
        timeout = httpx.Timeout(silence_s, connect=min(_CONNECT_S, silence_s))
        headers = {"X-Request-Id": name}
        return self._http.build_request(method, path, json=body, headers=headers, timeout=timeout)

    def _unreachable(self, cause: Exception) -> Unreachable:
        what = str(cause) or type(cause).__name__
        return Unreachable(f"{self._host}: no answer, or not all of it ({what[:200]})")

    @property
    def _host(self) -> str:
        return str(self._http.base_url.netloc.decode())


def new_id() -> str:
    """Of one call; every attempt of it carries the same, so that logs show them as one."""
    return f"req-{uuid.uuid4().hex}"


def _checked(reply: httpx.Response) -> dict[str, Any]:
    """The JSON object of a good reply.

    Raises:
        RequestError: any other reply.
    """
    try:
        tree = reply.json()
    except ValueError:
        tree = None
    if reply.status_code == 200 and isinstance(tree, dict):
        return tree
    error = tree.get("error") if isinstance(tree, dict) else None
    error = error if isinstance(error, dict) else {}
    asked = reply.headers.get("x-should-retry", "").lower()
    raise RequestError(
        str(error.get("message") or f"HTTP status {reply.status_code} without a reason")[:500],
        status=reply.status_code,
        code=error.get("code"),
        param=error.get("param"),
        retry_after_s=_retry_after(reply.headers),
        repeatable={"true": True, "false": False}.get(asked),
    )


def _error_frame(error: Tree) -> RequestError:
    return RequestError(
        str(error.get("message"))[:500],
        status=_STATUS.get(error.get("type", ""), 400),
        code=error.get("code"),
        param=error.get("param"),
    )


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds, from seconds or from a date."""
    text = headers.get("retry-after", "")
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        now = email.utils.parsedate_to_datetime(headers["date"])
        return max((email.utils.parsedate_to_datetime(text) - now).total_seconds(), 0.0)
    except (KeyError, TypeError, ValueError):
        return None
