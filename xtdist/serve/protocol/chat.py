"""The wire format of ``/v1/chat/completions``: OpenAI's, plus the extensions of completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from xtdist.serve.errors import invalid
from xtdist.serve.protocol.base import Usage, Wire, parse
from xtdist.serve.protocol.decoding import DecodingRequest, StructuredOutputs, check_together

_REFUSED = {
    "tools": "models here call no tools",
    "tool_choice": "models here call no tools",
    "parallel_tool_calls": "models here call no tools",
    "functions": "models here call no functions",
    "function_call": "models here call no functions",
    "audio": "models here read and write text",
    "modalities": "models here read and write text",
    "web_search_options": "models here search nothing",
    "prediction": "there is none of this kind; draft_tokens drafts with the amateur",
    "reasoning_effort": "models here answer at once",
    "suffix": "a conversation is continued; see /v1/completions and /v1/infill",
    "echo": "see /v1/completions",
    "best_of": "see /v1/completions",
}


class TextPart(Wire):
    """Part of a message."""

    type: Literal["text"]
    text: str


def _content(value: Any) -> str:
    """A message's text; of several parts, one a line.

    Raises:
        ValueError: it has something else.
    """
    if isinstance(value, str):
        return value
    fits = isinstance(value, list) and all(
        isinstance(p, dict)
        and p.keys() == {"type", "text"}
        and p["type"] == "text"
        and isinstance(p["text"], str)
        for p in value
    )
    if not fits:
        raise ValueError("it should be a string or a list of text parts: models here read text")
    return "\n".join(p["text"] for p in value)


def _given(value: Any) -> Any:
    """A message without nulls: a client's own types write those for what is not there."""
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


_CONTENT = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
                "additionalProperties": False,
            },
        },
    ]
}


class Message(Wire):
    """One message of a conversation. ``developer`` is another name of ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content), WithJsonSchema(_CONTENT)]
    name: str | None = Field(None, min_length=1, max_length=64)

    def variables(self) -> dict[str, str]:
        """As templates know it."""
        role = "system" if self.role == "developer" else self.role
        named = {"name": self.name} if self.name is not None else {}
        return {"role": role, "content": self.content, **named}


class JsonSchema(Wire):
    """The answer is JSON that ``schema`` describes; null: any object."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = Field(None, max_length=4096)
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    """OpenAI's way to say what form the answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def structured(self) -> StructuredOutputs | None:
        """The same in the engine's terms."""
        if self.type == "text":
            return None
        schema = self.json_schema.schema_ if self.json_schema is not None else None
        return StructuredOutputs.model_validate({"json": schema or {"type": "object"}})


class ChatRequest(DecodingRequest):
    """Body of ``POST /v1/chat/completions``.

    Attributes:
        max_completion_tokens: of the answer; ``max_tokens`` is its old name. Neither: as many as
            there is room for.
        logprobs, top_logprobs: of each token, and of how many likeliest ones.
        response_format: instead of ``structured_outputs``.
        add_generation_prompt: whether the template begins an answer.
        continue_final_message: the answer goes on with the last message, which is the assistant's.
    """

    messages: list[Annotated[Message, BeforeValidator(_given)]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0)
    response_format: ResponseFormat | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    @property
    def most(self) -> int | None:
        """Tokens of the answer."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def logprobs_of(self) -> int | None:
        """How many of the likeliest tokens are shown at each place; None: nothing at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


def parse_chat(tree: Mapping[str, Any]) -> ChatRequest:
    """Check a parsed body. The result says with ``structured_outputs`` what form the answer has.

    Raises:
        ApiError: 400 naming the key, what is allowed, and the nearest name of an unknown key.
    """
    for key, reason in _REFUSED.items():
        if tree.get(key) is not None:
            raise invalid(f"{key}: {reason}", param=key, code="unsupported_parameter")
    r = parse(ChatRequest, tree)
    check_together(r)
    if None not in (r.max_tokens, r.max_completion_tokens):
        problem = "max_tokens: it is the old name of max_completion_tokens; give one of them"
        raise invalid(problem, param="max_tokens", code="invalid_value")
    if r.top_logprobs is not None and not r.logprobs:
        problem = "top_logprobs: only with logprobs=true"
        raise invalid(problem, param="top_logprobs", code="invalid_value")
    _check_continued(r)
    return _with_format(r)


def _check_continued(r: ChatRequest) -> None:
    if not r.continue_final_message:
        return
    begins = r.add_generation_prompt and "add_generation_prompt" in r.model_fields_set
    if r.messages[-1].role != "assistant" or begins:
        raise invalid(
            "continue_final_message: only with a last message of the assistant, and without "
            "add_generation_prompt",
            param="continue_final_message",
            code="invalid_value",
        )


def _with_format(r: ChatRequest) -> ChatRequest:
    f = r.response_format
    if f is None:
        return r
    problem = ""
    if r.structured_outputs is not None:
        problem = "not together with structured_outputs"
    elif (f.json_schema is not None) != (f.type == "json_schema"):
        problem = "json_schema goes with type json_schema"
    if problem:
        message = f"response_format: {problem}"
        raise invalid(message, param="response_format", code="invalid_value")
    return r.model_copy(update={"structured_outputs": f.structured()})


class TopLogprob(Wire):
    """One token that could have come. ``bytes``: of its text."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """One token that came, and the likeliest in its place, best first."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Wire):
    content: list[TokenLogprob]
    refusal: None = None


class Said(Wire):
    """A message of the assistant, or what is new of it."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChatChoice(Wire):
    """``message`` in a whole answer, ``delta`` in a chunk. For the others see completions."""

    index: int
    message: Said | None = None
    delta: Said | None = None
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: str | int | None = None
    score: float | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class ChatCompletion(Wire):
    """A whole answer, or one chunk of a stream. ``system_fingerprint`` names the weights."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage | None = None
