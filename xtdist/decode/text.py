"""Text in, text out, by a named method: what the command line and the training samples use."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from xtdist.config import ConfigError
from xtdist.decode.denoiser import as_denoiser
from xtdist.decode.engine import Engine
from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.decode.params import ContrastiveParams, EngineConfig, GenerationParams

SEARCH = "contrastive-search"
FILL = "mask-predict"
METHODS = ("greedy", "sample", "beam", "contrastive", SEARCH, FILL)
_CANDIDATES = 4  # of contrastive search


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of all methods; each uses those it knows.

    Args:
        temperature: of sampling and mask-predict.
        top_k: of sampling; of contrastive search, how many candidates (None: 0 and 4).
        top_p, min_p: of sampling.
        repetition_penalty: of all methods that continue a text.
        num_beams, length_penalty: of beam search.
        alpha, beta: of contrastive decoding: how likely a token must be, how much the amateur's
            view is taken off.
        penalty_alpha: of contrastive search: how much a token that looks like those before loses.
        stop: texts that end a continuation.
        steps: of mask-predict; None: as the model was trained to be asked.
    """

    max_tokens: int = 64
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 4
    length_penalty: float = 1.0
    alpha: float = 0.1
    beta: float = 0.5
    penalty_alpha: float = 0.6
    stop: tuple[str, ...] = ()
    steps: int | None = None
    seed: int = 0


class TextGenerator:
    """Continues prompts with a model, and with an amateur where there is one.

    Args:
        model: a network, or a ``Denoiser``.
        filling: how a denoiser wants to be asked, without temperature and seed.
        banned_ids: never generated, the mask token first.

    Raises:
        ConfigError: an amateur for a model that has no contrastive decoding, or one that does not
            fit it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        amateur: Any = None,
        filling: MaskPredictParams | None = None,
        eos_id: int,
        banned_ids: tuple[int, ...],
    ) -> None:
        self.model, self.tokenizer, self.banned_ids = model, tokenizer, banned_ids
        self.amateur = amateur
        self.eos_id = eos_id
        self.denoiser, self.filling = as_denoiser(model), filling or MaskPredictParams()
        if amateur is not None and self.denoiser is not None:
            raise ConfigError(
                "amateur: a model that fills masks has no contrastive decoding; leave it out"
            )
        self.engine = self._make_engine(EngineConfig())

    def methods(self) -> tuple[str, ...]:
        """What this model can do without being told more; besides, contrastive search."""
        if self.denoiser is not None:
            return (FILL,)
        return ("greedy", "sample", "beam", *(["contrastive"] if self.amateur is not None else []))

    @property
    def longest(self) -> int:
        """Tokens that prompt and continuation may have together."""
        return self.engine.longest

    def __call__(self, prompt: str, method: str, settings: Settings, *, suffix: str = "") -> str:
        """The continuation of ``prompt`` (without it), or what stands between it and ``suffix``.

        Raises:
            ConfigError: the model can't do ``method``, or the prompt is too long.
        """
        return "".join(self.stream(prompt, method, settings, suffix=suffix))

    def stream(
        self, prompt: str, method: str, settings: Settings, *, suffix: str = ""
    ) -> Iterator[str]:
        """The same text, piece by piece as it is found; raises as calling does."""
        causal = self.denoiser is None
        if method not in self.methods() and not (method == SEARCH and causal):
            hint = "; give --amateur" if method == "contrastive" and causal else ""
            raise ConfigError(
                f"method: got {method!r}; this model can do {', '.join(self.methods())}{hint}"
            )
        if suffix and causal:
            raise ConfigError("suffix: a causal model continues a prompt; leave it out")
        ids = [int(i) for i in self.tokenizer.encode(prompt)]
        if method == FILL:
            yield from self._fill(ids, settings, suffix=suffix)
            return
        params = continuation(method, settings)
        if params.width > self.engine.config.max_sequences:
            self.engine = self._make_engine(EngineConfig(max_sequences=params.width))
        yield from (output.text for output in self.engine.stream(ids, params))

    def _make_engine(self, config: EngineConfig) -> Engine:
        return Engine(
            self.model,
            amateur=self.amateur,
            tokenizer=self.tokenizer,
            eos_ids=(self.eos_id,),
            banned_ids=self.banned_ids,
            config=config,
        )

    def _fill(self, ids: list[int], settings: Settings, *, suffix: str) -> Iterator[str]:
        if settings.max_tokens < 1:
            raise ConfigError(f"max_tokens: got {settings.max_tokens}; give at least 1")
        assert self.denoiser is not None
        after = [int(i) for i in self.tokenizer.encode(suffix)] if suffix else []
        known = len(ids) + len(after)
        total, longest = known + settings.max_tokens, self.denoiser.max_seq_len
        if total > longest:
            raise ConfigError(
                f"prompt of {known} tokens + max_tokens {settings.max_tokens} = {total}, more "
                f"than the model's {longest}; shorten the prompt or lower max_tokens"
            )
        mask_id = self.banned_ids[0]
        params = replace(
            self.filling,
            steps=self.filling.steps if settings.steps is None else settings.steps,
            temperature=settings.temperature,
            mask_id=mask_id,
            seed=settings.seed,
        )
        row = [*ids, *[mask_id] * settings.max_tokens, *after]
        # Bytes, and no decoding of ids as a text: a space at its start belongs to it.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        filled = (t for output in self.engine.stream(row, params) for t in output.token_ids)
        for token in itertools.islice(filled, len(ids), len(ids) + settings.max_tokens):
            yield decoder.decode(self.tokenizer.token_bytes(int(token)))
        yield decoder.decode(b"", final=True)


def continuation(method: str, settings: Settings) -> GenerationParams:
    """How the engine is asked to continue a prompt by a method. A seed is set where one is used.

    Raises:
        ConfigError: settings out of range, or a method that is not for this.
    """
    common = GenerationParams(
        max_tokens=settings.max_tokens,
        temperature=0.0,
        repetition_penalty=settings.repetition_penalty,
        stop=settings.stop,
    )
    match method:
        case "greedy":
            return common
        case "beam":
            return replace(
                common,
                num_beams=settings.num_beams,
                temperature=0.0 if settings.num_beams == 1 else 1.0,  # one beam is greedy
                length_penalty=settings.length_penalty if settings.num_beams > 1 else 1.0,
            )
        case "contrastive":
            contrast = ContrastiveParams(alpha=settings.alpha, beta=settings.beta)
            return replace(common, contrastive=contrast)
        case "contrastive-search":
            top_k = _CANDIDATES if settings.top_k is None else settings.top_k
            return replace(common, penalty_alpha=settings.penalty_alpha, top_k=top_k)
        case "sample":
            return replace(
                common,
                temperature=settings.temperature,
                top_k=settings.top_k or 0,
                top_p=settings.top_p,
                min_p=settings.min_p,
                seed=settings.seed,
            )
        case _:
            raise ConfigError(f"method: got {method!r}; a prompt is continued by another one")
