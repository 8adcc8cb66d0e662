"""The HTTP surface: routes behind the gate, and errors in OpenAI's form.

No CORS headers: a web page of another origin can not read an answer, and since the body must be
``application/json`` it can not cause one either. No generated documentation pages: they load
scripts from elsewhere.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Literal

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from xtdist.serve.backend import Backend, shutting_down
from xtdist.serve.chat import add_chat
from xtdist.serve.completions import add_completions
from xtdist.serve.errors import ApiError, unhealthy
from xtdist.serve.gate import Door, refusal
from xtdist.serve.infill import add_infill
from xtdist.serve.metrics import add_metrics
from xtdist.serve.models import add_models
from xtdist.serve.openapi import add_openapi, operation
from xtdist.serve.page import add_page
from xtdist.serve.protocol.base import Wire
from xtdist.serve.request_ids import RequestIds
from xtdist.serve.tokens import add_tokens


class Health(Wire):
    status: Literal["ok"] = "ok"


def make_app(backend: Backend) -> FastAPI:
    """The ASGI application over ``backend``."""
    app = FastAPI(title="xtdist", docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False
    app.add_middleware(Door, gate=backend.gate)
    app.add_middleware(RequestIds)
    add_metrics(app, backend.metrics)
    _add_errors(app)

    _add_health(app, backend)
    add_models(app, backend)
    add_completions(app, backend)
    add_chat(app, backend)
    add_infill(app, backend)
    add_tokens(app, backend)
    add_openapi(app, version("xtdist"))
    add_page(app)
    return app


def _add_health(app: FastAPI, backend: Backend) -> None:
    @app.get("/health", **operation("Whether it generates", Health))
    async def health() -> Response:
        if backend.draining:
            raise shutting_down()
        timeout_s = backend.limits.health_timeout_s
        sick = [m.name for m in backend.models if not await m.healthy(timeout_s)]
        if sick:
            raise unhealthy()
        return JSONResponse(Health().model_dump())


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, e: ApiError) -> Response:
        return refusal(e)

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, e: HTTPException) -> Response:
        message, code = "this path has other methods", "method_not_allowed"
        if e.status_code == 404:
            message, code = "no such path", "unknown_path"
        return refusal(ApiError(e.status_code, message, code=code, headers=dict(e.headers or {})))

    @app.exception_handler(RequestValidationError)
    async def wrong_form(_: Request, e: RequestValidationError) -> Response:
        return refusal(ApiError(400, "the request has a wrong form"))
