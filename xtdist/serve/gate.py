"""The door: nobody gets past it without a key, and nobody with more than the key's share.

It stands in front of every route but the open ones, so that a route that is added needs no check of
its own. In a handler, ``caller_of(request)`` is whoever asks::

    caller = caller_of(request)
    caller.charge(prompt_tokens + most_new_tokens)   # 429 if the key has used up its minute
    …
    caller.settle(tokens_used)                       # what was charged beyond it comes back

Bounds are counted by each replica for itself: of ``k`` replicas a key gets up to ``k`` times as
much. A shared count would cost every request a trip to another process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xtdist.serve.auth import LiveKeys
from xtdist.serve.config import LimitsConfig, QuotaConfig
from xtdist.serve.errors import ApiError, internal, outline, overloaded
from xtdist.serve.quota import Account

log = logging.getLogger(__name__)
OPEN_PATHS = frozenset({"/", "/health", "/openapi.json"})  # without secrets, and cheap
_CALLER = "xtdist.caller"


class Gate:
    """Lets callers in and counts what they use.

    Args:
        keys: who may come in.
        quota: bounds of a key whose line has none.
        limits: of what is inside at once, and of headers.
        open_metrics: whether ``/metrics`` needs no key.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        keys: LiveKeys,
        quota: QuotaConfig | None = None,
        *,
        limits: LimitsConfig | None = None,
        open_metrics: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.open_requests = 0
        self.open_paths = OPEN_PATHS | {"/metrics"} if open_metrics else OPEN_PATHS
        self._keys = keys
        self._quota = quota or QuotaConfig()
        self.limits = limits or LimitsConfig()
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def enter(self, authorization: str | None) -> Caller:
        """Let a request in that has this ``Authorization`` header. Its ``leave`` must follow.

        Raises:
            ApiError: 401 no valid key, 403 a key that is switched off, 429 above the bounds of the
                key, 503 too many requests inside.
        """
        key = self._keys.ring().authenticate(authorization)
        if self.open_requests >= self.limits.max_open_requests:
            raise overloaded()
        account = self._accounts.setdefault(key.name, Account())
        now = self._clock()
        account.follow(dataclasses.replace(self._quota, **key.quota), now)
        try:
            account.begin(now)
        except ApiError as e:
            e.headers.update(account.headers(now))
            raise
        self.open_requests += 1
        return Caller(key.name, account, self, self._clock)


class Caller:
    """One request of one key, from the door to the end of its answer.

    Args:
        name: of the key; it may be logged.
        salt: of the prefix cache; requests with different salts share no pages.
    """

    def __init__(self, name: str, account: Account, gate: Gate, clock: Callable[[], float]) -> None:
        self.name = name
        self.salt = hashlib.sha256(f"xtdist caller {name}".encode()).hexdigest()
        self._account = account
        self._gate = gate
        self._clock = clock
        self._charged = 0
        self._inside = True

    def charge(self, tokens: int) -> None:
        """Reserve tokens of the key's minute.

        Raises:
            ApiError: 429 with the time to come back; 400 for more than a minute's tokens.
        """
        self._account.charge(tokens, self._clock())
        self._charged += tokens

    def settle(self, tokens: int) -> None:
        """Only so many were used: the rest of what was charged comes back. Twice is once."""
        unused, self._charged = self._charged - tokens, min(self._charged, tokens)
        if unused > 0 and self._account.tokens is not None:
            self._account.tokens.take(-unused, self._clock())

    def leave(self) -> None:
        """The answer is sent, or nobody waits for it any more. Twice is once."""
        if self._inside:
            self._inside = False
            self._account.running -= 1
            self._gate.open_requests -= 1

    def headers(self) -> Mapping[str, str]:
        """What is left to this key, as OpenAI says it."""
        return self._account.headers(self._clock())


class Door:
    """The ASGI middleware that asks the gate, and keeps failures inside."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in and out. What fails inside ends here: the server around us would write
        its words, and with them what a client has sent, into a log."""
        caller: Caller | None = None
        started = False

        async def tell(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if caller is not None:
                    MutableHeaders(scope=message).update(caller.headers())
            await send(message)

        try:
            _check_headers(scope, self._gate.limits.max_header_bytes)
            if _path(scope) not in self._gate.open_paths:
                caller = self._gate.enter(Headers(scope=scope).get("authorization"))
                scope[_CALLER] = caller
            await self._app(scope, receive, tell)
        except ApiError as e:
            await refusal(e)(scope, receive, tell)
        except ClientDisconnect:
            pass
        except Exception as e:
            log.error("a request failed\n%s", outline(e))
            if started:  # the connection is cut: the client sees that the answer is not whole
                raise ConnectionAbortedError("the answer broke off") from None
            await refusal(internal())(scope, receive, tell)
        finally:
            if caller is not None:
                caller.leave()


def caller_of(request: HTTPConnection) -> Caller:
    """Who makes this request."""
    caller: Caller = request.scope[_CALLER]
    return caller


def refusal(e: ApiError) -> JSONResponse:
    """The answer to a request that is refused or has failed."""
    return JSONResponse(e.body(), status_code=e.status, headers=e.headers)


def _check_headers(scope: Scope, most: int) -> None:
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if size + len(scope.get("raw_path", b"")) + len(scope.get("query_string", b"")) > most:
        raise ApiError(431, f"the headers have more than {most} bytes", code="headers_too_large")


def _path(scope: Scope) -> str:
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) or "/"
