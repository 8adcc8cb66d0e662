"""The wire format of ``/v1/completions`` and ``/v1/models``: OpenAI's, plus our extensions.

Requests are strict: a key that we do not know is an error that names the nearest one, because a
misspelt sampling parameter is a quality bug that nobody sees. Extension names follow vLLM where it
has them (https://docs.vllm.ai); ``num_beams``, ``early_stopping`` and ``contrastive`` are ours.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from xtdist.config import ConfigError
from xtdist.decode.params import ContrastiveParams, GenerationParams
from xtdist.serve.errors import ApiError, invalid

Prompt = str | list[int]
Bias = Annotated[float, Field(ge=-100, le=100)]
_INT64 = 2**63
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


def _stops(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _biases(value: Any) -> Any:
    if isinstance(value, dict) and not all(k.isascii() and k.isdecimal() for k in value):
        raise ValueError("its keys should be token ids")
    return value


class Wire(BaseModel):
    """Base of everything that is sent or received."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Contrastive(Wire):
    """Contrastive decoding against the model's amateur (arXiv 2309.09117)."""

    alpha: float = Field(0.1, gt=0, le=1)
    beta: float = Field(0.5, ge=0, le=10)
    temperature: float = Field(1.0, ge=1e-3, le=100)


class StreamOptions(Wire):
    include_usage: bool = False


class CompletionRequest(Wire):
    """Body of ``POST /v1/completions``. Null means the default. Server limits come on top
    (:mod:`xtdist.serve.limits`)."""

    model: str
    prompt: Annotated[list[Prompt], BeforeValidator(_prompts)]
    max_tokens: int = Field(16, ge=1)
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1)
    best_of: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, ge=0)
    echo: bool = False
    stop: Annotated[list[str], BeforeValidator(_stops)] = Field(default_factory=list)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(_biases)] = Field(default_factory=dict)
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    user: str | None = Field(None, max_length=256)
    # vLLM's names
    use_beam_search: bool = False
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, lt=1)
    top_a: float = Field(0.0, ge=0, le=1)
    typical_p: float = Field(1.0, gt=0, le=1)
    temperature_last: bool = False
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    length_penalty: float = Field(1.0, ge=-100, le=100)
    stop_token_ids: list[int] = Field(default_factory=list)
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0)
    # ours
    num_beams: int | None = Field(None, ge=1)
    early_stopping: bool | Literal["never"] | None = None
    contrastive: Contrastive | None = None

    @property
    def beams(self) -> int:
        """Beam width; 1 means sampling, or greedy when ``use_beam_search`` is set."""
        return self.num_beams or (self.n if self.use_beam_search else 1)


def parse_request(tree: dict[str, Any]) -> CompletionRequest:
    """Check a parsed body.

    Raises:
        ApiError: 400 naming the key, what is allowed, and the nearest name of an unknown key.
    """
    given = {k: v for k, v in tree.items() if v is not None}
    for key, reason in _NOT_YET.items():
        if key in given:
            raise invalid(f"{key}: {reason}", param=key, code="unsupported_parameter")
    try:
        request = CompletionRequest.model_validate(given)
    except ValidationError as e:
        raise _describe(e.errors(include_url=False)[0]) from None
    _check_conflicts(request)
    return request


def _check_conflicts(r: CompletionRequest) -> None:
    if r.stream_options is not None and not r.stream:
        raise invalid("stream_options: only with stream=true", param="stream_options")
    if r.best_of not in (None, r.n) and r.stream:
        problem = "stream: the best choices are not known before all end"
        raise invalid(problem, param="stream", code="invalid_value")
    if r.beams > 1 and r.stream:
        raise invalid("stream: a beam search has no text before it ends", param="stream")
    if r.echo and r.logprobs is not None:
        raise invalid("echo: not together with logprobs", param="echo")


def _describe(err: ErrorDetails) -> ApiError:
    loc = [str(p) for p in err["loc"] if p not in ("bool", "literal['never']")]
    path = ".".join(loc)[:80]
    if err["type"] == "extra_forbidden":
        known = CompletionRequest if len(loc) == 1 else None
        names = list(known.model_fields) if known else []
        near = difflib.get_close_matches(loc[-1][:80], names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return invalid(f"{path!r}: unknown key{hint}", param=path, code="unknown_parameter")
    if err["type"] == "missing":
        return invalid(f"{path}: required key is missing", param=path, code="missing_parameter")
    problem = str(err["ctx"]["error"]) if err["type"] == "value_error" else err["msg"]
    problem = problem.replace("Input should", "it should")
    return invalid(f"{path}: {problem}", param=path, code="invalid_value")


def to_params(request: CompletionRequest) -> GenerationParams:
    """The engine's parameters of a checked request.

    Raises:
        ApiError: 400 for a value that the engine does not take.
    """
    r = request
    c = r.contrastive
    one_beam = r.use_beam_search and r.beams == 1  # which is greedy, and has nothing to rank
    try:
        return GenerationParams(
            max_tokens=r.max_tokens,
            temperature=0.0 if one_beam else r.temperature,
            top_k=max(r.top_k, 0),
            top_p=r.top_p,
            min_p=r.min_p,
            top_a=r.top_a,
            typical_p=r.typical_p,
            temperature_last=r.temperature_last,
            repetition_penalty=r.repetition_penalty,
            presence_penalty=r.presence_penalty,
            frequency_penalty=r.frequency_penalty,
            logit_bias={int(k): v for k, v in r.logit_bias.items()},
            seed=r.seed,
            n=r.n,
            best_of=r.best_of,
            stop=tuple(r.stop),
            stop_token_ids=tuple(r.stop_token_ids),
            ignore_eos=r.ignore_eos,
            min_tokens=r.min_tokens,
            logprobs=r.logprobs,
            num_beams=r.beams,
            length_penalty=1.0 if one_beam else r.length_penalty,
            early_stopping=None if one_beam else r.early_stopping,
            contrastive=ContrastiveParams(**c.model_dump()) if c is not None else None,
        )
    except ConfigError as e:
        raise refused(e) from None


def refused(e: ConfigError) -> ApiError:
    """400 for parameters that do not go together, or that this model can not honour."""
    key = str(e).partition(":")[0]
    param = key if key in CompletionRequest.model_fields else None
    return invalid(str(e)[:300], param=param, code="invalid_value")


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


class Usage(Wire):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(Wire):
    """A whole answer, or one chunk of a stream. ``system_fingerprint`` names the weights."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage | None = None


class ModelCard(Wire):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "xtdist"
    max_model_len: int
    contrastive: bool


class ModelList(Wire):
    object: Literal["list"] = "list"
    data: list[ModelCard]
