"""``/v1/models``: what there is to ask."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response

from xtdist.serve.backend import Backend
from xtdist.serve.openapi import operation
from xtdist.serve.protocol.models import ModelCard, ModelList


def add_models(app: FastAPI, backend: Backend) -> None:
    """The routes."""

    @app.get("/v1/models", **operation("The models", ModelList))
    async def models() -> Response:
        return _json(ModelList(data=[m.card() for m in backend.models]))

    @app.get("/v1/models/{name:path}", **operation("One model", ModelCard))
    async def model(name: str) -> Response:
        return _json(backend.find(name).card())


def _json(message: ModelList | ModelCard) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")
