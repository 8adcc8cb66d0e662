"""What a caller may ask of one generation, and what the engine may spend. Every range is checked
here, whether the values come from YAML, from HTTP or from Python."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Literal

from pydantic import Field

from xtdist.config import (
    ConfigError,
    Fraction,
    NonNegativeInt,
    PositiveInt,
    Probability,
    configclass,
)
from xtdist.decode.conflicts import check_conflicts
from xtdist.decode.fields import (
    BadWords,
    EarlyStopping,
    Layers,
    Logprobs,
    SomeTokenIds,
    StopStrings,
    TokenIds,
    part,
)

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Width = Annotated[int, Field(ge=1, le=1024)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TopMass = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
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


Contrasts = Annotated[
    ContrastiveParams | tuple[ContrastiveParams, ...] | None,
    part(
        ContrastiveParams,
        "ContrastiveParams(alpha=, beta=, temperature=), or a list of them, one for each amateur",
        several=True,
    ),
]


@configclass
class GrammarParams:
    """The text must be in a language: ``value`` is a JSON schema, a regular expression or a Lark
    grammar, as text, in the dialects of llguidance (extra ``structured``)."""

    kind: Literal["json_schema", "regex", "lark"]
    value: Annotated[str, Field(min_length=1, max_length=2**18)]


Grammar = Annotated[
    GrammarParams | None,
    part(GrammarParams, "GrammarParams(kind=, value=), with kind 'json_schema', 'regex' or 'lark'"),
]


@configclass
class GenerationParams:
    """How to continue one prompt.

    The order of the stages: grammar, ``min_tokens``, ``bad_words`` and ``logit_bias``; repetition,
    presence and frequency penalty; contrast; temperature, top-k, top-p, min-p, top-a, typical;
    noise. ``temperature_last`` filters first. ``logprobs`` are of the model's own distribution,
    before all of them. ``temperature`` 0 is greedy and ignores the filters.

    ``top_a``: p >= top_a * max p ** 2. ``typical_p``: the tokens whose surprise is nearest to the
    entropy, until they hold that mass (https://arxiv.org/abs/2202.00666). ``bad_words``: sequences
    of ids that never come, also where the prompt began one. ``allowed_token_ids``: no others come,
    ends included. ``min_tokens`` holds back ends and stop strings; ``include_stop_str`` leaves the
    one that ended the text in it. ``best_of`` draws that many and gives the ``n`` of the highest
    mean log-probability. ``draft_tokens``: speculative decoding, tokens that the first amateur
    drafts for each step. ``penalty_alpha`` > 0 with ``top_k`` > 1 is contrastive search
    (https://arxiv.org/abs/2202.06417). ``dola`` contrasts early layers
    (https://arxiv.org/abs/2309.03883): the lower or the upper half of them, or their numbers.
    ``prompt_logprobs`` asks for the log-probability of each token of the prompt, and so many of the
    best others; ``max_tokens`` 0 for nothing else. ``resume_tokens``: the last ids of the prompt
    are not its own but the first that this very request generated before (in an engine that is
    gone). They are given out again, without log-probabilities, and count as generated everywhere;
    what follows is what would have followed.

    ``num_beams`` > 1 is beam search with the semantics of transformers: ``n`` best of ``num_beams``
    beams by sum of log-probabilities / length ** ``length_penalty``. It draws nothing, so
    temperature must be 0 or 1 and no filter may be set. Where the search ends with fewer than ``n``
    hypotheses, the best one is repeated; where it has none, all ``n`` are empty.
    ``early_stopping`` null is False with beams. ``stochastic_beams`` draws the beams without
    replacement (https://arxiv.org/abs/1903.06059), with temperature and filters.

    The ranges keep every stage finite: no value may turn a banned id into a candidate.
    """

    max_tokens: NonNegativeInt = 16
    min_tokens: NonNegativeInt = 0
    temperature: Temperature = 1.0
    top_k: TopCount = 0
    top_p: TopMass = 1.0
    min_p: Probability = 0.0
    top_a: Fraction = 0.0
    typical_p: TopMass = 1.0
    temperature_last: bool = False
    repetition_penalty: Repetition = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[NonNegativeInt, Bias] = dataclasses.field(default_factory=dict)
    bad_words: BadWords = ()
    allowed_token_ids: SomeTokenIds | None = None
    grammar: Grammar = None
    seed: Seed | None = None
    n: Width = 1
    best_of: Width | None = None
    stop: StopStrings = ()
    include_stop_str: bool = False
    stop_token_ids: TokenIds = ()
    ignore_eos: bool = False
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None
    num_beams: Width = 1
    stochastic_beams: bool = False
    length_penalty: LengthPenalty = 1.0
    early_stopping: EarlyStopping = None
    contrastive: Contrasts = None
    draft_tokens: Annotated[int, Field(ge=0, le=64)] = 0
    penalty_alpha: Fraction = 0.0
    dola: Layers = None
    resume_tokens: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"min_tokens: got {self.min_tokens}, more than max_tokens {self.max_tokens}; "
                "lower it or raise max_tokens"
            )
        check_conflicts(self)

    @property
    def uses_beams(self) -> bool:
        return self.num_beams > 1

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @functools.cached_property
    def adjusts(self) -> bool:
        """Whether a stage before contrast and temperature is in use; ``min_tokens`` aside."""
        penalties = self.presence_penalty or self.frequency_penalty
        return bool(
            self.logit_bias or self.bad_words or self.repetition_penalty != 1.0 or penalties
        )

    @functools.cached_property
    def bad_word_table(self) -> tuple[set[int], dict[int, list[tuple[tuple[int, ...], int]]]]:
        """Bad words of one id, and of the others (all but the last id, last id) by the last but
        one."""
        longer: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        for *prefix, last in self.bad_words:
            if prefix:
                longer.setdefault(prefix[-1], []).append((tuple(prefix), last))
        return {word[0] for word in self.bad_words if len(word) == 1}, longer

    @property
    def width(self) -> int:
        """Sequences that run at once for this request."""
        if self.penalty_alpha > 0:
            return self.top_k
        return self.num_beams if self.uses_beams else self.best_of or self.n

    @property
    def width_field(self) -> str:
        """The field that ``width`` is from."""
        if self.penalty_alpha > 0:
            return "top_k"
        return "num_beams" if self.uses_beams else "n" if self.best_of is None else "best_of"

    @property
    def contrasts(self) -> tuple[ContrastiveParams, ...]:
        """One for each amateur that it is contrasted with, in order."""
        if self.contrastive is None:
            return ()
        return self.contrastive if isinstance(self.contrastive, tuple) else (self.contrastive,)

    @property
    def amateurs(self) -> int:
        """How many amateurs it reads; the first one drafts."""
        return max(len(self.contrasts), int(self.draft_tokens > 0))

    @property
    def recorded(self) -> int | None:
        """``logprobs``; or 0, the chosen token's alone, where they are needed to rank."""
        return self.logprobs if self.streams or self.logprobs is not None else 0

    @property
    def streams(self) -> bool:
        """Whether its tokens come one by one: what is ranked is only known at the end."""
        return not self.uses_beams and self.best_of in (None, self.n)


@configclass
class EngineConfig:
    """What an engine may use. 0 means: chosen from the device and the model.

    ``max_step_tokens`` bounds the tokens of one forward pass (long prompts go in chunks);
    ``page_tokens`` is the size of a KV page (0: a page is a whole sequence on CPU, where views are
    faster than gathers, and 256 tokens elsewhere); ``pool_tokens`` bounds the whole KV cache
    (0: room for ``max_sequences`` of full length); ``max_sequence_tokens`` is the longest sequence,
    prompt included (0: the model's ``max_seq_len``). It may be more than ``max_seq_len`` where the
    model has no table of positions: every token then stands at its true position and reads
    everything before it (or its window), nothing is dropped or rescaled; the amateurs too. ``seed``
    is the root of the draws of requests without a seed of their own (null: from the operating
    system). ``compile_sequences``: steps in which so many sequences at most go on by one token each
    are compiled (0: none). Each number of sequences is a graph of its own, made when it first comes
    up: 20 to 50 s for 8 layers on a CPU, less for the next process. Steps with prompts, drafts,
    early exits or hidden states are not compiled. Logits may differ in their last bits.
    ``prefix_cache``: a request that begins as another did, in blocks of 16 tokens, does not compute
    that again as long as the pages of the other are not taken; the pool then fills up and stays so.
    Not for models without a cache, with a context, and for contrastive search and
    ``prompt_logprobs``, which need all hidden states.
    """

    max_sequences: PositiveInt = 8
    max_step_tokens: PositiveInt = 2048
    page_tokens: NonNegativeInt = 0
    pool_tokens: NonNegativeInt = 0
    max_sequence_tokens: NonNegativeInt = 0
    max_waiting: PositiveInt = 64
    seed: Seed | None = None
    compile_sequences: Annotated[int, Field(ge=0, le=64)] = 0
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        if self.max_step_tokens < self.max_sequences:
            raise ConfigError(
                f"max_step_tokens: got {self.max_step_tokens}; at least max_sequences "
                f"{self.max_sequences}, so that every sequence can advance in one step"
            )
