"""What a caller may ask of one generation, and what the engine may spend. Every range is checked
here, whether the values come from YAML, from HTTP or from Python."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from xtdist.config import (
    ConfigError,
    Fraction,
    NonNegativeInt,
    PositiveInt,
    Probability,
    configclass,
)

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Width = Annotated[int, Field(ge=1, le=1024)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TopMass = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
TopCount = Annotated[int, Field(ge=0, lt=2**31)]
Repetition = Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False)]
LengthPenalty = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Contrast = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
AmateurTemperature = Annotated[float, Field(ge=1e-3, le=100, allow_inf_nan=False)]
GREEDY_BELOW = 1e-5


@configclass
class ContrastiveParams:
    """Contrastive decoding (https://arxiv.org/abs/2210.15097, https://arxiv.org/abs/2309.09117).

    A token stays a candidate if p_expert >= ``alpha`` * max p_expert. Candidates are scored
    (1 + ``beta``) * expert - ``beta`` * amateur / ``temperature``: the amateur has its own
    temperature. beta 0 is the expert under the mask, alpha 1 is greedy, alpha 0 masks nothing.
    """

    alpha: Fraction = 0.1
    beta: Contrast = 0.5
    temperature: AmateurTemperature = 1.0

    def __post_init__(self) -> None:
        check_fields(self)


@configclass
class GenerationParams:
    """How to continue one prompt.

    The order of the stages: ``min_tokens`` and ``logit_bias``, repetition, presence and frequency
    penalty, contrast, temperature, top-k, top-p, min-p, noise. ``logprobs`` are of the model's own
    distribution, before all of them. ``temperature`` 0 is greedy and ignores the filters.

    ``num_beams`` > 1 is beam search with the semantics of transformers: ``n`` best of ``num_beams``
    beams by sum of log-probabilities / length ** ``length_penalty``. It draws nothing, so
    temperature must be 0 or 1 and no filter may be set. Where the search ends with fewer than ``n``
    hypotheses, the best one is repeated; where it has none, all ``n`` are empty.

    The ranges keep every stage finite: no value may turn a banned id into a candidate.
    """

    max_tokens: PositiveInt = 16
    min_tokens: NonNegativeInt = 0
    temperature: Temperature = 1.0
    top_k: TopCount = 0
    top_p: TopMass = 1.0
    min_p: Probability = 0.0
    repetition_penalty: Repetition = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[NonNegativeInt, Bias] = dataclasses.field(default_factory=dict)
    seed: Seed | None = None
    n: Width = 1
    stop: Annotated[tuple[StopString, ...], Field(max_length=16)] = ()
    stop_token_ids: tuple[NonNegativeInt, ...] = ()
    ignore_eos: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    num_beams: Width = 1
    length_penalty: LengthPenalty = 1.0
    early_stopping: bool | Literal["never"] = False
    contrastive: ContrastiveParams | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"min_tokens: got {self.min_tokens}, more than max_tokens {self.max_tokens}; "
                "lower it or raise max_tokens"
            )
        if self.uses_beams:
            self._check_beams()

    def _check_beams(self) -> None:
        if self.n > self.num_beams:
            raise ConfigError(
                f"n: got {self.n}, but only num_beams {self.num_beams} beams are kept; "
                "raise num_beams or lower n"
            )
        draws = {
            "temperature": self.temperature in (0.0, 1.0),
            "top_k": self.top_k == 0,
            "top_p": self.top_p == 1.0,
            "min_p": self.min_p == 0.0,
            "logprobs": self.logprobs is None,
        }
        for name, fits in draws.items():
            if not fits:
                raise ConfigError(
                    f"{name}: got {getattr(self, name)} with num_beams {self.num_beams}; beam "
                    "search ranks by the model's own probabilities and draws nothing: leave "
                    f"{name} out, or set num_beams to 1"
                )

    @property
    def uses_beams(self) -> bool:
        return self.num_beams > 1

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def width(self) -> int:
        """Sequences that run at once for this request."""
        return self.num_beams if self.uses_beams else self.n


@configclass
class EngineConfig:
    """What an engine may use. 0 means: chosen from the device and the model.

    ``max_step_tokens`` bounds the tokens of one forward pass (long prompts go in chunks);
    ``page_tokens`` is the size of a KV page (0: a page is a whole sequence on CPU, where views are
    faster than gathers, and 256 tokens elsewhere); ``pool_tokens`` bounds the whole KV cache
    (0: room for ``max_sequences`` of full length); ``max_sequence_tokens`` is the longest sequence,
    prompt included (0: the model's). ``seed`` is the root of the draws of requests
    without a seed of their own (null: from the operating system).
    """

    max_sequences: PositiveInt = 8
    max_step_tokens: PositiveInt = 2048
    page_tokens: NonNegativeInt = 0
    pool_tokens: NonNegativeInt = 0
    max_sequence_tokens: NonNegativeInt = 0
    max_waiting: PositiveInt = 64
    seed: Seed | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_step_tokens < self.max_sequences:
            raise ConfigError(
                f"max_step_tokens: got {self.max_step_tokens}; at least max_sequences "
                f"{self.max_sequences}, so that every sequence can advance in one step"
            )


def check_fields(config: Any) -> None:
    """Check types and ranges of a config that was built in Python.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """
    cls: Any = type(config)
    for name, adapter in _adapters(cls).items():
        value = getattr(config, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as e:
            message = e.errors(include_url=False)[0]["msg"].lower()
            shown = message.replace("input should", "it should")
            raise ConfigError(f"{name}: got {value!r:.80}; {shown}") from None


@functools.cache
def _adapters(cls: Any) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: TypeAdapter(hints[f.name]) for f in dataclasses.fields(cls)}
