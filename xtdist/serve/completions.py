"""``/v1/completions``, from checked JSON to an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from xtdist.serve.answer import Answer, Growing, respond
from xtdist.serve.choice import CompletionChoice
from xtdist.serve.config import LimitsConfig
from xtdist.serve.gate import caller_of
from xtdist.serve.job import Job
from xtdist.serve.limits import check_ids, check_length, check_request
from xtdist.serve.protocol import Completion, CompletionRequest
from xtdist.serve.protocol.completions import to_params
from xtdist.serve.served import Served


async def complete(
    request: Request, body: CompletionRequest, *, served: Served, limits: LimitsConfig
) -> Response:
    """Answer ``body``.

    Raises:
        ApiError: refused, overloaded, late or failed, before the first byte of an answer.
    """
    check_request(body, limits)
    check_ids(body, served.tokenizer.vocab_size)
    params = to_params(body)
    prompts = [await served.encode(p) for p in body.prompt]
    for ids in prompts:
        check_length(len(ids), body.max_tokens, served.max_seq_len)
    caller = caller_of(request)
    caller.charge(sum(map(len, prompts)) + len(prompts) * body.max_tokens * params.width)
    job = Job(prompts, params, limits.request_timeout_s)
    form = CompletionForm(body, served, prompts)
    answer = Answer(body, form, served=served, job=job, caller=caller)
    return await respond(request, answer, limits)


class CompletionForm:
    """How answers of ``/v1/completions`` are written."""

    prefix = "cmpl"

    def __init__(self, body: CompletionRequest, served: Served, prompts: list[list[int]]) -> None:
        tokenizer = served.tokenizer
        self.prompt_tokens = sum(map(len, prompts))
        texts = [p if isinstance(p, str) else tokenizer.decode(p) for p in body.prompt]
        echoes = [text if body.echo else "" for text in texts for _ in range(body.n)]
        self.choices: Sequence[Growing] = [
            CompletionChoice(i, tokenizer, echo=echo, logprobs=body.logprobs is not None)
            for i, echo in enumerate(echoes)
        ]

    def message(self, **fields: Any) -> Completion:
        return Completion(object="text_completion", **fields)
