"""How a text is to be continued: the request keys that completions and chat have in common.

Extension names follow vLLM where it has them (https://docs.vllm.ai).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from xtdist.config import ConfigError
from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.decode.params import ContrastiveParams, GenerationParams, GrammarParams
from xtdist.serve.errors import ApiError, invalid
from xtdist.serve.protocol.base import StreamRequest, Wire

_INT64 = 2**63
_WIRE_NAMES = {"grammar": "structured_outputs", "include_stop_str": "include_stop_str_in_output"}
_AS_THEY_ARE = (
    "draft_tokens",
    "frequency_penalty",
    "ignore_eos",
    "min_p",
    "min_tokens",
    "n",
    "penalty_alpha",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stochastic_beams",
    "temperature_last",
    "top_a",
    "top_p",
    "typical_p",
)
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100, le=100)]
_ID = r"^[0-9]{1,10}$"
Biases = Annotated[
    dict[Annotated[str, Field(pattern=_ID)], Bias],
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {_ID: {"type": "number", "minimum": -100, "maximum": 100}},
            "additionalProperties": False,
        }
    ),
]
Word = Annotated[str, Field(min_length=1, max_length=256)]


def _stops(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    list[str],
    BeforeValidator(_stops),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class Contrastive(Wire):
    """Contrastive decoding against the model's amateur (arXiv 2309.09117)."""

    alpha: float = Field(0.1, gt=0, le=1)
    beta: float = Field(0.5, ge=0, le=10)
    temperature: float = Field(1.0, ge=1e-3, le=100)


def _one_key(schema: dict[str, Any]) -> None:
    schema |= {"minProperties": 1, "maxProperties": 1}
    for value in schema["properties"].values():
        value["anyOf"] = [kind for kind in value["anyOf"] if kind != {"type": "null"}]


class StructuredOutputs(Wire):
    """The text must be in a language; exactly one of the keys says which: a JSON schema (an object
    or its text), a regular expression, one of several texts, or a Lark grammar."""

    model_config = ConfigDict(json_schema_extra=_one_key)

    json_schema: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[Word] | None = Field(None, min_length=1, max_length=256)
    grammar: str | None = None

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if len(self.model_fields_set) != 1:
            raise ValueError("it should have exactly one of json, regex, choice, grammar")
        return self

    @property
    def chars(self) -> int:
        """How much there is to read."""
        return sum(len(str(getattr(self, key))) for key in self.model_fields_set)

    def params(self) -> GrammarParams:
        """Raises ApiError for a text that is empty or too long for the engine."""
        kind, text = self._text()
        try:
            return GrammarParams(kind=kind, value=text)
        except ConfigError:
            problem = "structured_outputs: the grammar is empty or too long"
            raise invalid(problem, param="structured_outputs", code="invalid_value") from None

    def _text(self) -> tuple[Literal["json_schema", "regex", "lark"], str]:
        if self.json_schema is not None:
            schema = self.json_schema
            return "json_schema", schema if isinstance(schema, str) else json.dumps(schema)
        if self.regex is not None:
            return "regex", self.regex
        if self.choice is not None:
            words = " | ".join(json.dumps(c, ensure_ascii=False) for c in self.choice)
            return "lark", f"start: {words}"
        return "lark", self.grammar or ""


class DecodingRequest(StreamRequest):
    """Null means the default. Server limits come on top (:mod:`xtdist.serve.limits`).

    Attributes:
        bad_words: never come, in the tokenizer's own spelling of them, alone or after a space.
        priority: all requests have the same.
    """

    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1)
    stop: Stops = Field(default_factory=list)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Biases = Field(default_factory=dict)
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    # vLLM's names
    use_beam_search: bool = False
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, lt=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    length_penalty: float = Field(1.0, ge=-100, le=100)
    stop_token_ids: list[TokenId] = Field(default_factory=list)
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0)
    bad_words: list[Word] = Field(default_factory=list)
    allowed_token_ids: list[TokenId] | None = Field(None, min_length=1)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    priority: Literal[0] = 0
    structured_outputs: StructuredOutputs | None = None
    # ours
    top_a: float = Field(0.0, ge=0, le=1)
    typical_p: float = Field(1.0, gt=0, le=1)
    temperature_last: bool = False
    num_beams: int | None = Field(None, ge=1)
    stochastic_beams: bool = False
    early_stopping: bool | Literal["never"] | None = None
    contrastive: Contrastive | None = None
    draft_tokens: int = Field(0, ge=0, le=64)
    penalty_alpha: float = Field(0.0, ge=0, le=1)
    dola: Literal["low", "high"] | list[Annotated[int, Field(ge=0, lt=2**31)]] | None = None

    @property
    def beams(self) -> int:
        """Beam width; 1 means sampling, or greedy when ``use_beam_search`` is set."""
        return self.num_beams or (self.n if self.use_beam_search else 1)


def check_together(r: DecodingRequest) -> None:
    """Refuse what does not go together.

    Raises:
        ApiError: 400.
    """
    if r.stream_options is not None and not r.stream:
        raise invalid("stream_options: only with stream=true", param="stream_options")
    if r.beams > 1 and r.stream:
        raise invalid("stream: a beam search has no text before it ends", param="stream")
    if r.ignore_eos and not r.skip_special_tokens:
        problem = "skip_special_tokens: false only shows the end of a text, which ignore_eos is not"
        raise invalid(problem, param="skip_special_tokens", code="invalid_value")


def decoding_params(
    r: DecodingRequest,
    *,
    bad_words: tuple[tuple[int, ...], ...] = (),
    **others: Any,
) -> GenerationParams:
    """The engine's parameters of a checked request.

    Args:
        bad_words: token ids of what must not come.
        others: fields of the engine's parameters that only one kind of request has.

    Raises:
        ApiError: 400 for a value that the engine does not take.
    """
    c, ids, one_beam = r.contrastive, r.allowed_token_ids, r.use_beam_search and r.beams == 1
    try:
        return GenerationParams(
            **{key: getattr(r, key) for key in _AS_THEY_ARE},
            # One beam is greedy, and has nothing to rank.
            temperature=0.0 if one_beam else r.temperature,
            length_penalty=1.0 if one_beam else r.length_penalty,
            early_stopping=None if one_beam else r.early_stopping,
            num_beams=r.beams,
            top_k=max(r.top_k, 0),
            logit_bias={int(k): v for k, v in r.logit_bias.items()},
            bad_words=bad_words,
            grammar=r.structured_outputs.params() if r.structured_outputs is not None else None,
            stop=tuple(r.stop),
            stop_token_ids=tuple(r.stop_token_ids),
            include_stop_str=r.include_stop_str_in_output,
            allowed_token_ids=ids if ids is None else tuple(ids),
            contrastive=ContrastiveParams(**c.model_dump()) if c is not None else None,
            dola=tuple(r.dola) if isinstance(r.dola, list) else r.dola,
            **others,
        )
    except ConfigError as e:
        raise refused(e) from None


def refused(e: ConfigError) -> ApiError:
    """400 for parameters that do not go together, or that this model can not honour."""
    field, colon, problem = str(e).partition(":")
    of_engine = {*GenerationParams.__dataclass_fields__, *MaskPredictParams.__dataclass_fields__}
    known = field in of_engine or field in ("prompt", "suffix")
    if not (colon and known):
        return invalid(str(e)[:300], code="invalid_value")
    key = _WIRE_NAMES.get(field, field)
    return invalid(f"{key}:{problem}"[:300], param=key, code="invalid_value")
