"""Bounds that are checked before a request costs anything."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from xtdist.serve.config import LimitsConfig
from xtdist.serve.errors import ApiError, invalid
from xtdist.serve.protocol import CompletionRequest


async def read_body(request: Request, limits: LimitsConfig) -> bytes:
    """The body of a JSON request, never more of it than allowed.

    Raises:
        ApiError: 415 other content type or encoding, 413 too large, 408 too slow.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send the body as Content-Type: application/json", code="content_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "send the body without Content-Encoding", code="content_encoding")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared[:20]) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await _read(request, limits)
    except TimeoutError:
        raise ApiError(408, "the body took too long to arrive", code="body_timeout") from None
    except ClientDisconnect:
        raise invalid("the body ended early", code="body_incomplete") from None


async def _read(request: Request, limits: LimitsConfig) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.max_body_bytes:
            raise _too_large(limits)
    return bytes(body)


def _too_large(limits: LimitsConfig) -> ApiError:
    return ApiError(
        413, f"the body has more than {limits.max_body_bytes} bytes", code="body_too_large"
    )


def check_request(request: CompletionRequest, limits: LimitsConfig) -> None:
    """Refuse what no client may ask of this server.

    Raises:
        ApiError: 400 naming the key and the bound.
    """
    bounds = [
        ("prompt", len(request.prompt), limits.max_prompts, "prompts"),
        ("max_tokens", request.max_tokens, limits.max_tokens, "tokens"),
        ("logprobs", request.logprobs or 0, limits.max_logprobs, "per token"),
        ("stop", len(request.stop), limits.max_stops, "strings"),
        ("stop", max(map(len, request.stop), default=0), limits.max_stop_chars, "characters"),
        ("stop_token_ids", len(request.stop_token_ids), limits.max_stops, "ids"),
        ("logit_bias", len(request.logit_bias), limits.max_logit_bias, "entries"),
    ]
    for key, given, allowed, unit in bounds:
        if given > allowed:
            raise invalid(f"{key}: at most {allowed} {unit} here", param=key, code="over_limit")
    widths = {"n": request.n, "best_of": request.best_of or 1, "num_beams": request.beams}
    key = max(widths, key=lambda k: widths[k])
    if len(request.prompt) * widths[key] > limits.max_sequences:
        raise invalid(
            f"{key}: prompts x max(n, best_of, num_beams) is at most {limits.max_sequences} here",
            param=key,
            code="over_limit",
        )
    if "" in request.stop:
        raise invalid("stop: a stop string should not be empty", param="stop")


def check_ids(request: CompletionRequest, vocab_size: int) -> None:
    """Refuse token ids outside the vocabulary."""
    ids = {
        "prompt": [t for p in request.prompt if not isinstance(p, str) for t in p],
        "stop_token_ids": request.stop_token_ids,
        "logit_bias": [int(k) if len(k) < 20 else -1 for k in request.logit_bias],
    }
    for key, values in ids.items():
        if any(not 0 <= v < vocab_size for v in values):
            raise invalid(
                f"{key}: token ids are 0 to {vocab_size - 1}", param=key, code="bad_token_id"
            )


def check_length(prompt_tokens: int, max_tokens: int, max_seq_len: int) -> None:
    """Refuse what does not fit the model's positions, with the counts."""
    if prompt_tokens + max_tokens > max_seq_len:
        raise invalid(
            f"prompt: {prompt_tokens} tokens and max_tokens={max_tokens} exceed the model's "
            f"{max_seq_len} positions",
            param="prompt",
            code="context_length_exceeded",
        )
