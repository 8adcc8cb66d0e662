"""``/tokenize`` and ``/detokenize``: what a model reads, and what its tokens say."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from xtdist.serve.backend import Backend
from xtdist.serve.choice import token_text
from xtdist.serve.errors import invalid
from xtdist.serve.limits import check_text, read_object
from xtdist.serve.openapi import operation
from xtdist.serve.protocol.base import parse
from xtdist.serve.protocol.tokens import (
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
)
from xtdist.serve.served import Served


def add_tokens(app: FastAPI, backend: Backend) -> None:
    """The routes."""

    @app.post("/tokenize", **operation("Token ids of a text", Tokenized, takes=TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        body = parse(TokenizeRequest, await read_object(request, backend.limits))
        check_text("prompt", [body.prompt], backend.limits)
        return _json(await _tokenized(body, backend.find(body.model)))

    @app.post("/detokenize", **operation("Text of token ids", Detokenized, takes=DetokenizeRequest))
    async def detokenize(request: Request) -> Response:
        body = parse(DetokenizeRequest, await read_object(request, backend.limits))
        tokenizer = backend.find(body.model).tokenizer
        most = tokenizer.vocab_size - 1
        if any(i > most for i in body.tokens):
            raise invalid(f"tokens: token ids are 0 to {most}", param="tokens", code="bad_token_id")
        return _json(Detokenized(prompt=await asyncio.to_thread(tokenizer.decode, body.tokens)))


async def _tokenized(body: TokenizeRequest, served: Served) -> Tokenized:
    ids = await served.tokenize(body.prompt)
    strings = None
    if body.return_token_strs:
        strings = [token_text(i, served.tokenizer) for i in ids]
    return Tokenized(
        count=len(ids), max_model_len=served.max_seq_len, tokens=ids, token_strs=strings
    )


def _json(message: Tokenized | Detokenized) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")
