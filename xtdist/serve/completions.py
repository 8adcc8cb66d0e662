"""``/v1/completions``, from checked JSON to an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from xtdist.serve.answer import Answer, Growing, respond
from xtdist.serve.backend import Backend
from xtdist.serve.choice import CompletionChoice, Prompt, Shown
from xtdist.serve.config import LimitsConfig
from xtdist.serve.errors import invalid
from xtdist.serve.gate import caller_of
from xtdist.serve.infill import complete_by_filling
from xtdist.serve.job import Job
from xtdist.serve.limits import check_ids, check_length, check_request, read_object
from xtdist.serve.openapi import operation
from xtdist.serve.protocol import Completion, CompletionRequest, parse_request, to_params
from xtdist.serve.served import Served, word_ids


def add_completions(app: FastAPI, backend: Backend) -> None:
    """The route."""
    about = operation("A continuation", Completion, takes=CompletionRequest, streams=True)

    @app.post("/v1/completions", **about)
    async def completions(request: Request) -> Response:
        backend.check_room()
        body = parse_request(await read_object(request, backend.limits))
        served = backend.find(body.model)
        served.thread.check_room()
        return await complete(request, body, served=served, limits=backend.limits)


async def complete(
    request: Request, body: CompletionRequest, *, served: Served, limits: LimitsConfig
) -> Response:
    """Answer ``body``.

    Raises:
        ApiError: refused, overloaded, late or failed, before the first byte of an answer.
    """
    check_request(body, limits)
    check_ids(body, served.tokenizer.vocab_size)
    if served.fills:
        return await complete_by_filling(request, body, served=served, limits=limits)
    for key in ("suffix", "steps"):
        if getattr(body, key) is not None:
            problem = f"{key}: this model continues a prompt; only one that fills masks has it"
            raise invalid(problem, param=key, code="unsupported_parameter")
    prompts = [await served.encode(p) for p in body.prompt]
    prompts = [_truncated(ids, body, served) for ids in prompts]
    for ids in prompts:
        check_length(len(ids) - body.resume_tokens, body.max_tokens, served.max_seq_len)
    params = to_params(body, bad_words=word_ids(body.bad_words, served.tokenizer))
    await served.compile(params, limits.grammar_timeout_s)
    form = CompletionForm(body, served, prompts)
    caller = caller_of(request)
    caller.charge(form.prompt_tokens + len(prompts) * body.max_tokens * params.width)
    salt = caller.salt + (body.cache_salt or "")
    job = Job(prompts, params, limits.request_timeout_s, salt=salt)
    answer = Answer(body, form, served=served, job=job, caller=caller)
    return await respond(request, answer, limits)


def _truncated(ids: list[int], body: CompletionRequest, served: Served) -> list[int]:
    """The end of the prompt that is asked for.

    Raises:
        ApiError: 400 when ``max_tokens`` leave no room for any prompt.
    """
    most = body.truncate_prompt_tokens
    if most == -1:
        most = served.max_seq_len - body.max_tokens
        check_length(1, body.max_tokens, served.max_seq_len)
    return ids if most is None else ids[-most:]


class CompletionForm:
    """How answers of ``/v1/completions`` are written."""

    prefix = "cmpl"

    def __init__(self, body: CompletionRequest, served: Served, prompts: list[list[int]]) -> None:
        shown = Shown(
            echo=body.echo,
            logprobs=body.logprobs,
            prompt_logprobs=body.prompt_logprobs,
            token_ids=body.return_token_ids,
            special=not body.skip_special_tokens,
        )
        tokenizer = served.tokenizer
        parts = []
        for given, read in zip(body.prompt, prompts, strict=True):
            ids = read[: len(read) - body.resume_tokens]
            plain = isinstance(given, str) and body.truncate_prompt_tokens is None
            text = "" if not body.echo else given if plain else tokenizer.decode(ids)
            parts.append(Prompt(ids, str(text), awaited=body.scored is not None))
        self.prompt_tokens = sum(len(p.ids) for p in parts)
        self.choices: Sequence[Growing] = [
            CompletionChoice(i, tokenizer, parts[i // body.n], shown=shown)
            for i in range(len(parts) * body.n)
        ]

    def message(self, **fields: Any) -> Completion:
        return Completion(object="text_completion", **fields)
