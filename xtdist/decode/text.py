"""Text in, text out, by a named method: what the command line and the training samples use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from xtdist.config import ConfigError
from xtdist.decode.denoiser import as_denoiser
from xtdist.decode.engine import Engine
from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.decode.params import ContrastiveParams, EngineConfig, GenerationParams

METHODS = ("greedy", "sample", "beam", "contrastive", "mask-predict")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of all methods; each uses those it knows. ``steps``: of mask-predict; None: as the model was
    trained to be asked."""

    max_tokens: int = 64
    temperature: float = 0.8
    top_p: float = 0.95
    num_beams: int = 4
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
        """What this model can do."""
        if self.denoiser is not None:
            return ("mask-predict",)
        return ("greedy", "sample", "beam", *(["contrastive"] if self.amateur is not None else []))

    def __call__(self, prompt: str, method: str, settings: Settings) -> str:
        """The continuation of ``prompt`` (without it).

        Raises:
            ConfigError: the model can't do ``method``, or the prompt is too long.
        """
        if method not in self.methods():
            causal = self.denoiser is None
            hint = "; give --amateur" if method == "contrastive" and causal else ""
            raise ConfigError(
                f"method: got {method!r}; this model can do {', '.join(self.methods())}{hint}"
            )
        ids = [int(i) for i in self.tokenizer.encode(prompt)]
        if method == "mask-predict":
            return self._fill(ids, settings)
        params = _params(method, settings)
        if params.width > self.engine.config.max_sequences:
            self.engine = self._make_engine(EngineConfig(max_sequences=params.width))
        return self.engine.generate([ids], params)[0].choices[0].text

    def _make_engine(self, config: EngineConfig) -> Engine:
        return Engine(
            self.model,
            amateur=self.amateur,
            tokenizer=self.tokenizer,
            eos_ids=(self.eos_id,),
            banned_ids=self.banned_ids,
            config=config,
        )

    def _fill(self, ids: list[int], settings: Settings) -> str:
        if settings.max_tokens < 1:
            raise ConfigError(f"max_tokens: got {settings.max_tokens}; give at least 1")
        assert self.denoiser is not None
        total, longest = len(ids) + settings.max_tokens, self.denoiser.max_seq_len
        if total > longest:
            raise ConfigError(
                f"prompt of {len(ids)} tokens + max_tokens {settings.max_tokens} = {total}, more "
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
        row = [*ids, *[mask_id] * settings.max_tokens]
        filled = self.engine.generate([row], params)[0].choices[0].token_ids
        raw = b"".join(self.tokenizer.token_bytes(int(i)) for i in filled[len(ids) :])
        return raw.decode(errors="replace")  # not a whole text: a space at its start belongs to it


def _params(method: str, settings: Settings) -> GenerationParams:
    n = settings.max_tokens
    match method:
        case "greedy":
            return GenerationParams(max_tokens=n, temperature=0.0)
        case "beam":
            greedy = 0.0 if settings.num_beams == 1 else 1.0  # one beam is greedy
            return GenerationParams(max_tokens=n, num_beams=settings.num_beams, temperature=greedy)
        case "contrastive":
            return GenerationParams(max_tokens=n, temperature=0.0, contrastive=ContrastiveParams())
        case _:
            return GenerationParams(
                max_tokens=n,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=settings.seed,
            )
