"""The HTTP surface: routes behind the gate, and errors in OpenAI's form.

No CORS headers: a web page of another origin can not read an answer, and since the body must be
``application/json`` it can not cause one either. No generated documentation pages: they load
scripts from elsewhere.
"""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from xtdist.serve.backend import Backend, shutting_down
from xtdist.serve.completions import complete
from xtdist.serve.errors import ApiError
from xtdist.serve.gate import Door, refusal
from xtdist.serve.limits import read_body
from xtdist.serve.protocol import ModelList, parse_request
from xtdist.serve.strict_json import parse_object


def make_app(backend: Backend) -> FastAPI:
    """The ASGI application over ``backend``."""
    app = FastAPI(title="xtdist", docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False
    app.add_middleware(Door, gate=backend.gate)
    _add_errors(app)

    @app.get("/health")
    async def health() -> Response:
        if backend.draining:
            raise shutting_down()
        timeout_s = backend.limits.health_timeout_s
        sick = [m.name for m in backend.models if not await m.healthy(timeout_s)]
        if sick:
            raise ApiError(503, "not generating", code="unhealthy", headers={"Retry-After": "5"})
        return JSONResponse({"status": "ok"})

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse(ModelList(data=[m.card() for m in backend.models]).model_dump())

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return JSONResponse(backend.find(name).card().model_dump())

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        raw = await read_body(request, backend.limits)
        body = parse_request(parse_object(raw, max_depth=backend.limits.max_json_depth))
        served = backend.find(body.model)
        return await complete(request, body, served=served, limits=backend.limits)

    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, e: ApiError) -> Response:
        return refusal(e)

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, e: HTTPException) -> Response:
        message = "no such path" if e.status_code == 404 else "not allowed here"
        return refusal(ApiError(e.status_code, message, headers=dict(e.headers or {})))

    @app.exception_handler(RequestValidationError)
    async def wrong_form(_: Request, e: RequestValidationError) -> Response:
        return refusal(ApiError(400, "the request has a wrong form"))
