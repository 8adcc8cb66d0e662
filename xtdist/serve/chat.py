"""``/v1/chat/completions``: a conversation, through the model's template, as a completion."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from xtdist.checkpoint.chat_template import ChatTemplate, TemplateError
from xtdist.decode.outputs import TokenLogprob as Logprob
from xtdist.serve.answer import Answer, Growing, respond
from xtdist.serve.backend import Backend
from xtdist.serve.choice import LOWEST, GrowingChoice, token_text
from xtdist.serve.config import LimitsConfig
from xtdist.serve.errors import ApiError, invalid
from xtdist.serve.gate import caller_of
from xtdist.serve.job import Job
from xtdist.serve.limits import check_decoding, check_ids, check_text, read_object
from xtdist.serve.openapi import operation
from xtdist.serve.protocol.chat import (
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    Said,
    TokenLogprob,
    TopLogprob,
    parse_chat,
)
from xtdist.serve.protocol.decoding import decoding_params
from xtdist.serve.served import Served, TokenizerLike, word_ids


def add_chat(app: FastAPI, backend: Backend) -> None:
    """The route."""
    about = operation("An answer", ChatCompletion, takes=ChatRequest, streams=True)

    @app.post("/v1/chat/completions", **about)
    async def chat(request: Request) -> Response:
        backend.check_room()
        body = parse_chat(await read_object(request, backend.limits))
        served = backend.find(body.model)
        served.thread.check_room()
        return await converse(request, body, served=served, limits=backend.limits)


async def converse(
    request: Request, body: ChatRequest, *, served: Served, limits: LimitsConfig
) -> Response:
    """Answer ``body``.

    Raises:
        ApiError: refused, overloaded, late or failed, before the first byte of an answer.
    """
    template = _template(served)
    check_text("messages", [m.content for m in body.messages], limits)
    check_decoding(body, limits, max_tokens=body.most or 1, logprobs=body.logprobs_of or 0)
    check_ids(body, served.tokenizer.vocab_size)
    prompt, stop = await _prompt(template, body, served)
    most = _room(body, len(prompt), served=served, limits=limits)
    body = body.model_copy(update={"stop": list(dict.fromkeys([*body.stop, *stop]))})
    params = decoding_params(
        body,
        bad_words=word_ids(body.bad_words, served.tokenizer),
        max_tokens=most,
        logprobs=body.logprobs_of,
    )
    await served.compile(params, limits.grammar_timeout_s)
    caller = caller_of(request)
    caller.charge(len(prompt) + most * params.width)
    salt = caller.salt + (body.cache_salt or "")
    job = Job([prompt], params, limits.request_timeout_s, salt=salt)
    form = ChatForm(body, prompt, served.tokenizer)
    answer = Answer(body, form, served=served, job=job, caller=caller)
    return await respond(request, answer, limits)


def _template(served: Served) -> ChatTemplate:
    if served.chat_template is None or served.fills:
        why = "fills masks, ask /v1/infill" if served.fills else "has no chat template"
        raise invalid(
            f"model: this one {why}; those for conversations have chat=true in /v1/models",
            param="model",
            code="unsupported_model",
        )
    return served.chat_template


async def _prompt(
    template: ChatTemplate, body: ChatRequest, served: Served
) -> tuple[list[int], tuple[str, ...]]:
    """Token ids of the conversation, and the strings that end the answer to it.

    Raises:
        ApiError: 400: the template has no text for it.
    """

    def work() -> tuple[list[int], tuple[str, ...]]:
        rendered = template.render(
            [m.variables() for m in body.messages],
            go_on=body.add_generation_prompt and not body.continue_final_message,
            unfinished=body.continue_final_message,
        )
        return rendered.encode(served.tokenizer) or [served.tokenizer.eot_id], rendered.stop

    try:
        return await asyncio.to_thread(work)
    except TemplateError as e:
        raise invalid(f"messages: {e}", param="messages", code="template_failed") from None


def _room(body: ChatRequest, prompt_tokens: int, *, served: Served, limits: LimitsConfig) -> int:
    """Tokens that the answer may have.

    Raises:
        ApiError: 400 where there is no room for them.
    """
    left = served.max_seq_len - prompt_tokens
    if left >= (body.most or 1):
        return body.most or min(left, limits.max_tokens)
    raise _too_long(prompt_tokens, body.most or 1, served.max_seq_len)


def _too_long(prompt_tokens: int, most: int, longest: int) -> ApiError:
    return invalid(
        f"messages: {prompt_tokens} tokens, with the template's, and {most} of the answer exceed "
        f"the model's {longest} positions",
        param="messages",
        code="context_length_exceeded",
    )


class GrowingAnswer(GrowingChoice):
    """One choice of ``/v1/chat/completions``."""

    def __init__(
        self, index: int, body: ChatRequest, prompt: Sequence[int], tokenizer: TokenizerLike
    ) -> None:
        special = not body.skip_special_tokens
        super().__init__(index, tokenizer, ids=body.return_token_ids, special=special)
        self._prompt, self._live = prompt, body.stream
        self._most = body.logprobs_of
        self._begun = False

    def release(self) -> ChatChoice:
        """Everything since the last release."""
        more: dict[str, Any] = {}
        if self.shows_ids:
            more["token_ids"], self.token_ids = self.token_ids, []
            if not self._begun:
                more["prompt_token_ids"] = list(self._prompt)
        if self.finish_reason is not None:
            ends = {"stop_reason": self.stop_reason, "score": self.score}
            more |= {k: v for k, v in ends.items() if v is not None}
        role: dict[str, Any] = {} if self._begun else {"role": "assistant"}
        if self._live:
            more["delta"] = Said(**role, content=self.text)
        else:
            more["message"] = Said(**role, content=self.text, refusal=None)
        choice = ChatChoice(
            index=self.index,
            logprobs=self._logprobs(self._most) if self._most is not None else None,
            finish_reason=self.finish_reason,
            **more,
        )
        self.text, self.tokens, self._begun = "", [], True
        return choice

    def _logprobs(self, most: int) -> ChatLogprobs:
        return ChatLogprobs(
            content=[
                TokenLogprob(
                    **self._described(t.token_id, t.logprob), top_logprobs=self._top(t, most)
                )
                for t in self.tokens
            ],
            refusal=None,
        )

    def _top(self, token: Logprob, most: int) -> list[TopLogprob]:
        return [TopLogprob(**self._described(i, p)) for i, p in token.top[:most]]

    def _described(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self.tokenizer.token_bytes(token_id)
        return {
            "token": token_text(token_id, self.tokenizer),
            "logprob": max(logprob, LOWEST),
            "bytes": list(raw) if raw else None,
        }


class ChatForm:
    """How answers of ``/v1/chat/completions`` are written."""

    prefix = "chatcmpl"

    def __init__(self, body: ChatRequest, prompt: list[int], tokenizer: TokenizerLike) -> None:
        self.prompt_tokens = len(prompt)
        self._live = body.stream
        self.choices: Sequence[Growing] = [
            GrowingAnswer(i, body, prompt, tokenizer) for i in range(body.n)
        ]

    def message(self, **fields: Any) -> ChatCompletion:
        return ChatCompletion(
            object="chat.completion.chunk" if self._live else "chat.completion", **fields
        )
