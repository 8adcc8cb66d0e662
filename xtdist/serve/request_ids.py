"""Every response carries a name that a client can quote: ``x-request-id``."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SANE = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_HEADER = "x-request-id"


class RequestIds:
    """The ASGI middleware outside of all others. A client's own name is kept if it is a plain word:
    nothing that a client writes comes into our headers or logs otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(_HEADER, "")
        name = given if _SANE.fullmatch(given) else f"req-{uuid.uuid4().hex}"

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_HEADER] = name
            await send(message)

        await self._app(scope, receive, tell)
