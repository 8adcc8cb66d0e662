"""Filling masks: ``/v1/infill``, and ``/v1/completions`` of a model that fills masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.serve.answer import Answer, respond
from xtdist.serve.backend import Backend
from xtdist.serve.config import LimitsConfig
from xtdist.serve.errors import invalid
from xtdist.serve.filling import FilledCompletionForm, InfillForm
from xtdist.serve.gate import caller_of
from xtdist.serve.job import Job
from xtdist.serve.limits import check_text, read_object
from xtdist.serve.openapi import operation
from xtdist.serve.protocol import CompletionRequest
from xtdist.serve.protocol.infill import Infill, InfillRequest, Mask, fill_params, parse_infill
from xtdist.serve.served import Served, TokenizerLike

# What a completion by filling masks can have; the rest is about continuing a text.
_OF_COMPLETIONS = {*InfillRequest.model_fields, "echo", "priority", "skip_special_tokens"}


def add_infill(app: FastAPI, backend: Backend) -> None:
    """The route."""
    about = operation("A text with its masks filled", Infill, takes=InfillRequest, streams=True)

    @app.post("/v1/infill", **about)
    async def infill(request: Request) -> Response:
        backend.check_room()
        body = parse_infill(await read_object(request, backend.limits))
        served = backend.find(body.model)
        served.thread.check_room()
        return await fill(request, body, served=served, limits=backend.limits)


async def fill(
    request: Request, body: InfillRequest, *, served: Served, limits: LimitsConfig
) -> Response:
    """Answer ``body``.

    Raises:
        ApiError: refused, overloaded, late or failed, before the first byte of an answer.
    """
    if served.filling is None:
        raise invalid(
            "model: this one continues a prompt, ask /v1/completions; one that fills masks has "
            "fills=true in /v1/models",
            param="model",
            code="unsupported_model",
        )
    key = "max_tokens" if body.max_tokens is not None else "mask"
    _check(body.masks, limits, key=key)
    _check_count(body.n, served, limits)
    row = await _row(body.parts, served=served, limits=limits)
    params = fill_params(body, served.filling, mask_id=served.tokenizer.mask_id)
    form = InfillForm(body, row, served.tokenizer)
    job = _job([row], params, limits)
    caller = caller_of(request)
    caller.charge(form.prompt_tokens + body.masks * body.n)
    answer = Answer(body, form, served=served, job=job, caller=caller)
    return await respond(request, answer, limits)


async def complete_by_filling(
    request: Request, body: CompletionRequest, *, served: Served, limits: LimitsConfig
) -> Response:
    """Answer a completion with ``max_tokens`` masks behind each prompt, and before the suffix.

    Raises:
        ApiError: refused, overloaded, late or failed, before the first byte of an answer.
    """
    for key in sorted(body.model_fields_set - _OF_COMPLETIONS):
        field = type(body).model_fields[key]
        if getattr(body, key) != field.get_default(call_default_factory=True):
            raise invalid(
                f"{key}: this model fills masks and does not continue a text token by token; leave "
                "it out, or see /v1/infill",
                param=key,
                code="unsupported_parameter",
            )
    assert served.filling is not None
    if not body.max_tokens:
        raise invalid("max_tokens: at least 1", param="max_tokens", code="invalid_value")
    _check(body.max_tokens, limits, key="max_tokens")
    _check_count(len(body.prompt) * body.n, served, limits)
    gap = Mask(mask=body.max_tokens)
    parts = [[p, gap, body.suffix or []] for p in body.prompt]
    rows = [await _row(p, served=served, limits=limits) for p in parts]
    params = fill_params(_Asked(body), served.filling, mask_id=served.tokenizer.mask_id)
    form = FilledCompletionForm(body, rows, served.tokenizer)
    job = _job(rows, params, limits)
    caller = caller_of(request)
    caller.charge(form.prompt_tokens + len(job.prompts) * body.max_tokens)
    answer = Answer(body, form, served=served, job=job, caller=caller)
    return await respond(request, answer, limits)


class _Asked:
    """Of a completion, only what was said: where it says nothing, the model's own config holds."""

    def __init__(self, body: CompletionRequest) -> None:
        self._body = body

    def __getattr__(self, name: str) -> Any:
        said = name == "n" or name in self._body.model_fields_set
        return getattr(self._body, name, None) if said else None


async def _row(
    parts: Sequence[str | list[int] | Mask], *, served: Served, limits: LimitsConfig
) -> list[int]:
    """The ids of a sequence, masks included.

    Raises:
        ApiError: 400 for more than the model has positions for, or ids that can't be given.
    """
    check_text("text", [p for p in parts if isinstance(p, str)], limits)
    longest, mask_id = served.max_seq_len, served.tokenizer.mask_id
    row: list[int] = []
    total = len(parts)
    if total <= longest:
        for part in parts:
            if isinstance(part, str):
                row += await served.tokenize(part)
            elif isinstance(part, Mask):
                row += [mask_id] * part.mask
            else:
                _check_ids(part, served.tokenizer)
                row += part
        total = len(row)
    if total > longest:
        raise invalid(
            f"the sequence has more tokens, masks included, than the model's {longest} positions",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return row


def _check_ids(ids: Iterable[int], tokenizer: TokenizerLike) -> None:
    for token_id in ids:
        if not 0 <= token_id < tokenizer.vocab_size or token_id == tokenizer.mask_id:
            raise invalid(
                f"tokens: token ids are 0 to {tokenizer.vocab_size - 1}, without the mask: write "
                "{'mask': 1} for it",
                param="tokens",
                code="bad_token_id",
            )


def _check(masks: int, limits: LimitsConfig, *, key: str) -> None:
    if masks > limits.max_tokens:
        problem = f"{key}: at most {limits.max_tokens} tokens are filled here"
        raise invalid(problem, param=key, code="over_limit")


def _check_count(sequences: int, served: Served, limits: LimitsConfig) -> None:
    """Refuse more of them than may be asked for, or than could ever wait in the engine together,
    before anything is made for each."""
    most = min(limits.max_sequences, served.thread.engine.config.max_waiting)
    if sequences > most:
        problem = f"n: prompts x n is at most {most} here"
        raise invalid(problem, param="n", code="over_limit")


def _job(rows: list[list[int]], params: tuple[MaskPredictParams, ...], limits: LimitsConfig) -> Job:
    """Every row filled as often as there are ``params``."""
    prompts = [row for row in rows for _ in params]
    return Job(prompts, params * len(rows), limits.request_timeout_s)
