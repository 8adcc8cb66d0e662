"""``GET /openapi.json``: what can be asked and what comes back, from the types that check it."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from xtdist.serve.gate import OPEN_PATHS
from xtdist.serve.protocol.base import ErrorBody, Wire

_SSE = {"text/event-stream": {"schema": {"type": "string"}}}


def operation(
    summary: str, answer: type[Wire], *, takes: type[Wire] | None = None, streams: bool = False
) -> dict[str, Any]:
    """What a route says of itself, as arguments of FastAPI's decorators.

    Args:
        takes: the body.
        streams: whether it may answer with server-sent events, too.
    """
    good: dict[str, Any] = {"model": answer, "description": summary}
    if streams:
        good["content"] = _SSE
    bad = {"model": ErrorBody}
    responses = {
        200: good,
        "4XX": {**bad, "description": "The request is refused"},
        "5XX": {**bad, "description": "The server failed, or has no room"},
    }
    extra: dict[str, Any] = {}
    if takes is not None:
        content = {"application/json": {"schema": _schema(takes)}}
        extra["requestBody"] = {"required": True, "content": content}
    return {"summary": summary, "responses": responses, "openapi_extra": extra}


def add_openapi(app: FastAPI, version: str) -> None:
    """The route. The document is made when it is first asked for, beside the event loop."""

    @functools.cache
    def document() -> dict[str, Any]:
        whole = get_openapi(title="xtdist", version=version, routes=app.routes)
        schemes = {"key": {"type": "http", "scheme": "bearer"}}
        whole.setdefault("components", {})["securitySchemes"] = schemes
        for path, operations in whole["paths"].items():
            for described in operations.values():
                described["security"] = [] if path in OPEN_PATHS else [{}, {"key": []}]
        return whole

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        root = request.scope.get("root_path") or "/"
        return JSONResponse({**await asyncio.to_thread(document), "servers": [{"url": root}]})


@functools.cache
def _schema(form: type[Wire]) -> dict[str, Any]:
    """The JSON schema of a body in one piece. What has a default may be null."""
    whole = form.model_json_schema()
    parts = whole.pop("$defs", {})
    schema: dict[str, Any] = _inlined(whole, parts)
    required = schema.get("required", ())
    for key, value in schema["properties"].items():
        if key not in required and {"type": "null"} not in value.get("anyOf", ()):
            outside = {k: value.pop(k) for k in ("default", "title", "description") if k in value}
            schema["properties"][key] = {"anyOf": [value, {"type": "null"}], **outside}
    return schema


def _inlined(tree: Any, parts: dict[str, Any]) -> Any:
    if isinstance(tree, list):
        return [_inlined(x, parts) for x in tree]
    if not isinstance(tree, dict):
        return tree
    if "$ref" in tree:
        rest = {k: v for k, v in tree.items() if k != "$ref"}
        return {**_inlined(parts[tree["$ref"].rpartition("/")[2]], parts), **rest}
    return {k: _inlined(v, parts) for k, v in tree.items()}
