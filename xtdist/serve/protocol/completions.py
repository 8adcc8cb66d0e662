"""The wire format of ``/v1/completions``: OpenAI's, plus our extensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from xtdist.decode.params import GenerationParams
from xtdist.serve.errors import invalid
from xtdist.serve.protocol.base import Usage, Wire, parse
from xtdist.serve.protocol.decoding import DecodingRequest, check_stream, decoding_params

Prompt = str | list[int]
_NOT_YET = {
    "suffix": "infilling needs a non-autoregressive model and is not offered here",
}


def _prompts(value: Any) -> list[Prompt]:
    """OpenAI's four forms of ``prompt`` as one: a list of prompts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(x) is int for x in value):
            return [value]
        if all(isinstance(x, str) for x in value):
            return value
        if all(isinstance(x, list) and x and all(type(t) is int for t in x) for x in value):
            return value
    raise ValueError("it should be a string, a list of strings, of token ids, or of such lists")


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
Prompts = Annotated[
    list[Prompt],
    BeforeValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                _IDS,
                {"type": "array", "items": _IDS, "minItems": 1},
            ]
        }
    ),
]


class CompletionRequest(DecodingRequest):
    """Body of ``POST /v1/completions``."""

    prompt: Prompts
    max_tokens: int = Field(16, ge=1)
    best_of: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0)
    echo: bool = False


def parse_request(tree: Mapping[str, Any]) -> CompletionRequest:
    """Check a parsed body.

    Raises:
        ApiError: 400 naming the key, what is allowed, and the nearest name of an unknown key.
    """
    for key, reason in _NOT_YET.items():
        if tree.get(key) is not None:
            raise invalid(f"{key}: {reason}", param=key, code="unsupported_parameter")
    request = parse(CompletionRequest, tree)
    check_stream(request)
    if request.best_of not in (None, request.n) and request.stream:
        problem = "stream: the best choices are not known before all end"
        raise invalid(problem, param="stream", code="invalid_value")
    if request.echo and request.logprobs is not None:
        raise invalid("echo: not together with logprobs", param="echo")
    return request


def to_params(
    r: CompletionRequest, *, bad_words: tuple[tuple[int, ...], ...] = ()
) -> GenerationParams:
    """The engine's parameters of a checked request; see :func:`decoding_params`."""
    return decoding_params(
        r,
        bad_words=bad_words,
        max_tokens=r.max_tokens,
        best_of=r.best_of,
        logprobs=r.logprobs,
    )


class Logprobs(Wire):
    """OpenAI's legacy form: parallel lists, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class Choice(Wire):
    """``score``: of a beam, its length-normalised log-likelihood (natural log)."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    score: float | None = None


class Completion(Wire):
    """A whole answer, or one chunk of a stream. ``system_fingerprint`` names the weights."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage | None = None
