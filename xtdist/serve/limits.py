"""Bounds that are checked before a request costs anything."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any

from starlette.requests import ClientDisconnect, Request

from xtdist.serve.config import LimitsConfig
from xtdist.serve.errors import ApiError, invalid
from xtdist.serve.protocol import CompletionRequest
from xtdist.serve.protocol.decoding import DecodingRequest
from xtdist.serve.strict_json import parse_object

_KIND = re.compile(r'application/json\s*(;\s*charset="?utf-?8"?\s*)?', re.IGNORECASE)


async def read_object(request: Request, limits: LimitsConfig) -> dict[str, Any]:
    """The JSON object that a request holds.

    Raises:
        ApiError: as :func:`read_body` and :func:`parse_object`.
    """
    return parse_object(await read_body(request, limits), max_depth=limits.max_json_depth)


async def read_body(request: Request, limits: LimitsConfig) -> bytes:
    """The body of a JSON request, never more of it than allowed.

    Raises:
        ApiError: 415 other content type or encoding, 413 too large, 408 too slow.
    """
    if _KIND.fullmatch(request.headers.get("content-type", "").strip()) is None:
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
    """Refuse what no client may ask of ``/v1/completions``.

    Raises:
        ApiError: 400 naming the key and the bound.
    """
    prompts = request.prompt
    check_text("prompt", [p for p in prompts if isinstance(p, str)], limits)
    _check("prompt", len(prompts), limits.max_prompts, "prompts")
    _check("prompt_logprobs", request.prompt_logprobs or 0, limits.max_logprobs, "per token")
    check_decoding(
        request,
        limits,
        max_tokens=request.max_tokens,
        logprobs=request.logprobs or 0,
        prompts=len(prompts),
        best_of=request.best_of or 1,
    )


def check_text(key: str, texts: Iterable[str], limits: LimitsConfig) -> None:
    """Refuse more text than anyone may have tokenized.

    Raises:
        ApiError: 400 naming the bound.
    """
    _check(key, sum(map(len, texts)), limits.max_prompt_chars, "characters")


def check_decoding(
    request: DecodingRequest,
    limits: LimitsConfig,
    *,
    max_tokens: int,
    logprobs: int,
    prompts: int = 1,
    best_of: int = 1,
) -> None:
    """Refuse what no client may ask of a continuation of any kind.

    Raises:
        ApiError: 400 naming the key and the bound.
    """
    r = request
    _check("max_tokens", max_tokens, limits.max_tokens, "tokens")
    _check("logprobs", logprobs, limits.max_logprobs, "per token")
    _check("stop", len(r.stop), limits.max_stops, "strings")
    _check("stop", max(map(len, r.stop), default=0), limits.max_stop_chars, "characters")
    _check("stop_token_ids", len(r.stop_token_ids), limits.max_stops, "ids")
    _check("logit_bias", len(r.logit_bias), limits.max_logit_bias, "entries")
    _check("bad_words", len(r.bad_words), limits.max_bad_words, "words")
    _check("dola", len(r.dola) if isinstance(r.dola, list) else 0, limits.max_stops, "layers")
    if r.structured_outputs is not None:
        size = r.structured_outputs.chars
        _check("structured_outputs", size, limits.max_grammar_chars, "characters")
    widths = {
        "n": r.n,
        "best_of": best_of,
        "num_beams": r.beams,
        "top_k": r.top_k if r.penalty_alpha > 0 else 0,  # contrastive search
    }
    key = max(widths, key=lambda k: widths[k])
    if prompts * widths[key] > limits.max_sequences:
        raise invalid(
            f"{key}: prompts x the widest of n, best_of, num_beams and, with penalty_alpha, top_k "
            f"is at most {limits.max_sequences} here",
            param=key,
            code="over_limit",
        )
    if "" in r.stop:
        raise invalid("stop: a stop string should not be empty", param="stop")


def _check(key: str, given: int, allowed: int, unit: str) -> None:
    if given > allowed:
        raise invalid(f"{key}: at most {allowed} {unit} here", param=key, code="over_limit")


def check_ids(request: DecodingRequest, vocab_size: int) -> None:
    """Refuse token ids outside the vocabulary."""
    prompts = request.prompt if isinstance(request, CompletionRequest) else []
    ids = {
        "prompt": [t for p in prompts if not isinstance(p, str) for t in p],
        "stop_token_ids": request.stop_token_ids,
        "allowed_token_ids": request.allowed_token_ids or [],
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
