"""What the engine refuses before it starts: models that don't fit together, requests that can't be
honoured. Nothing is silently shortened or ignored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xtdist.config import ConfigError
from xtdist.decode.contrastive import check_amateur
from xtdist.decode.params import GenerationParams
from xtdist.decode.stopping import Tokenizer

if TYPE_CHECKING:
    from xtdist.decode.engine import Engine


@dataclass(frozen=True)
class Limits:
    """What the models allow. ``max_seq_len`` counts prompt and generated tokens together."""

    num_tokens: int
    tokenizer_tokens: int
    max_seq_len: int
    amateur_seq_len: int | None = None

    def sequence_tokens(self, params: GenerationParams) -> int:
        if params.contrastive is None or self.amateur_seq_len is None:
            return self.max_seq_len
        return min(self.max_seq_len, self.amateur_seq_len)


def check_models(model: Any, amateur: Any | None, tokenizer: Tokenizer | None) -> Limits:
    """Raises ConfigError unless both are causal and share the tokenizer's vocabulary."""
    for name, net in (("model", model), ("amateur", amateur)):
        if net is not None and not net.config.causal:
            raise ConfigError(
                f"{name}: it is not causal, so it can't continue text token by token; "
                "use mask_predict for non-autoregressive models"
            )
    tokens = model.config.num_tokens
    if amateur is not None:
        check_amateur(tokens, amateur.config.num_tokens)
    if tokenizer is not None and tokenizer.vocab_size > tokens:
        raise ConfigError(
            f"tokenizer: it has {tokenizer.vocab_size} tokens, the model {tokens}; "
            "give the tokenizer that the model was trained with"
        )
    return Limits(
        num_tokens=tokens,
        tokenizer_tokens=tokens if tokenizer is None else tokenizer.vocab_size,
        max_seq_len=model.max_seq_len,
        amateur_seq_len=None if amateur is None else amateur.max_seq_len,
    )


def check_request(
    prompt: tuple[int, ...], params: GenerationParams, *, limits: Limits, engine: Engine
) -> None:
    """Raises ConfigError for what this engine can't honour."""
    if not prompt:
        raise ConfigError("prompt: it is empty; give at least one token, e.g. the end-of-text id")
    _check_ids("prompt", prompt, limits)
    _check_ids("stop_token_ids", params.stop_token_ids, limits)
    _check_ids("logit_bias", tuple(params.logit_bias), limits)
    if params.contrastive is not None and engine.amateur is None:
        raise ConfigError("contrastive: no amateur model is loaded; give the engine one")
    if params.stop and engine.tokenizer is None:
        raise ConfigError("stop: strings need a tokenizer; use stop_token_ids without one")
    total, longest = len(prompt) + params.max_tokens, limits.sequence_tokens(params)
    if total > longest:
        raise ConfigError(
            f"prompt of {len(prompt)} tokens + max_tokens {params.max_tokens} = {total}, more than "
            f"the model's {longest}; shorten the prompt or lower max_tokens"
        )
    if params.width > engine.config.max_sequences:
        field = "num_beams" if params.uses_beams else "n"
        raise ConfigError(
            f"{field}: got {params.width}, more than the engine's max_sequences "
            f"{engine.config.max_sequences}; lower {field} or raise max_sequences"
        )
    needed = params.width * engine.pool.pages_for(total)
    if needed > engine.pool.num_pages:
        raise ConfigError(
            f"the request may need {needed} KV pages, the pool has {engine.pool.num_pages}; "
            "lower max_tokens or the number of sequences, or raise pool_tokens"
        )


def _check_ids(name: str, ids: tuple[int, ...], limits: Limits) -> None:
    wrong = [i for i in ids if not 0 <= i < limits.num_tokens]
    if wrong:
        raise ConfigError(
            f"{name}: token id {wrong[0]} is not in the vocabulary; ids are 0 to "
            f"{limits.num_tokens - 1}"
        )
