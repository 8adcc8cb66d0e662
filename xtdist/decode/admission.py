"""What the engine refuses before it starts: models that don't fit together, requests that can't be
honoured. Nothing is silently shortened or ignored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xtdist.config import ConfigError
from xtdist.decode.contrastive import check_amateur
from xtdist.decode.kv_cache import KVPool
from xtdist.decode.params import EngineConfig, GenerationParams
from xtdist.decode.stopping import Tokenizer
from xtdist.model.tokens import check_predicts_tokens
from xtdist.nn.attention.cache import CacheSpec
from xtdist.nn.position.config import LearnedConfig


@dataclass(frozen=True)
class Limits:
    """What one model allows. ``max_seq_len`` counts prompt and generated tokens together; it is
    what the model was made for, and ``longest`` what it can do at all. ``context_dim`` is the width
    of what its cross attention reads, None without any. ``prefix``: the tokens of the prompt see
    each other. ``position_table``: it has a vector for each position and none beyond.
    ``predicted``: ids that it can predict, embedded or not; 0: ``num_tokens``."""

    num_tokens: int
    max_seq_len: int
    cache: CacheSpec
    context_dim: int | None = None
    prefix: bool = False
    position_table: bool = False
    predicted: int = 0

    @property
    def longest(self) -> int | None:
        """Tokens that a sequence can have at all; None: as many as there is room for. Rotary,
        polar and sinusoidal positions and biases by distance go on beyond ``max_seq_len`` as they
        are, nothing is dropped or rescaled; whether the text stays good is the model's affair."""
        return self.max_seq_len if self.position_table else None

    @classmethod
    def of(cls, model: Any, name: str) -> Limits:
        """Raises ConfigError for a model that is not causal, predicts no tokens or reads a
        condition."""
        if not model.config.causal:
            raise ConfigError(
                f"{name}: it is not causal, so it can't continue text token by token; "
                "use mask_predict for non-autoregressive models"
            )
        check_predicts_tokens(model.config, name=name, given=("context", "prefix_attn_len"))
        config = model.config
        return cls(
            num_tokens=config.num_tokens,
            max_seq_len=model.max_seq_len,
            cache=model.cache_spec(),
            context_dim=(config.dim_context or config.dim) if config.cross_attention else None,
            prefix=config.prefix,
            position_table=isinstance(config.position, LearnedConfig),
            predicted=config.head.dim or config.num_tokens,
        )


@dataclass(frozen=True)
class Admission:
    """Checks requests against what the models and the engine's settings allow."""

    config: EngineConfig
    expert: Limits
    amateurs: tuple[Limits, ...]
    tokenizer: Tokenizer | None

    @classmethod
    def check_models(
        cls,
        model: Any,
        amateurs: Sequence[Any] = (),
        *,
        tokenizer: Tokenizer | None,
        config: EngineConfig,
    ) -> Admission:
        """Raises ConfigError unless all are causal and share the tokenizer's vocabulary."""
        limits = Limits.of(model, "model")
        names = _amateur_names(len(amateurs))
        weaker = [Limits.of(a, name) for a, name in zip(amateurs, names, strict=True)]
        for other, name in zip(weaker, names, strict=True):
            check_amateur(limits.num_tokens, other.num_tokens, name=name)
        if limits.longest is not None and config.max_sequence_tokens > limits.longest:
            raise ConfigError(
                f"max_sequence_tokens: got {config.max_sequence_tokens}, but the model has learned "
                f"a vector for each of {limits.longest} positions and none beyond; lower it"
            )
        if tokenizer is not None and required_ids(tokenizer) > limits.num_tokens:
            raise ConfigError(
                f"tokenizer: it has {required_ids(tokenizer)} tokens, the model "
                f"{limits.num_tokens}; give the tokenizer that the model was trained with"
            )
        return cls(config, limits, tuple(weaker), tokenizer)

    @property
    def models(self) -> list[Limits]:
        return [self.expert, *self.amateurs]

    @property
    def names(self) -> list[str]:
        """How the user knows them."""
        return ["model", *_amateur_names(len(self.amateurs))]

    def longest(self, *models: Limits) -> int:
        """Tokens that a sequence of all ``models`` may have."""
        asked = self.config.max_sequence_tokens
        if not asked:
            return min(m.max_seq_len for m in models)
        beyond = asked > self.expert.max_seq_len
        bounds = [m.longest if beyond else m.max_seq_len for m in models]
        return min([asked, *(b for b in bounds if b is not None)])

    def _read(self, params: GenerationParams) -> list[Limits]:
        """The models that a request runs."""
        return self.models[: 1 + params.amateurs]

    @property
    def unused_ids(self) -> range:
        """Ids that the model has and the tokenizer does not."""
        known = self.expert.num_tokens if self.tokenizer is None else self.tokenizer.vocab_size
        return range(known, max(known, self.expert.num_tokens))

    def known(self, ids: Iterable[int]) -> tuple[int, ...]:
        """``ids`` without those of the tokenizer that the model lacks, and so never gives."""
        size = 0 if self.tokenizer is None else self.tokenizer.vocab_size
        return tuple(i for i in ids if not self.expert.num_tokens <= i < size)

    def check_marks(self, eos_ids: Sequence[int], banned_ids: Sequence[int]) -> None:
        """Raises ConfigError for ids that the model has not, and where none is left to choose."""
        self.check_ids("eos_ids", eos_ids)
        count = max(self.expert.num_tokens, self.expert.predicted)
        self.check_ids("banned_ids", banned_ids, count=count)
        if len({*banned_ids, *self.unused_ids}) >= count:
            raise ConfigError("banned_ids: no id is left to go on with; ban fewer")

    def check(
        self, prompt: tuple[int, ...], params: GenerationParams, *, context: Any, pool: KVPool
    ) -> None:
        """Raises ConfigError for what this engine can't honour."""
        if not prompt:
            raise ConfigError(
                "prompt: it is empty; give at least one token, e.g. the end-of-text id"
            )
        self.check_ids("prompt", prompt)
        self.check_ids("stop_token_ids", params.stop_token_ids)
        self.check_ids("logit_bias", tuple(params.logit_bias))
        self.check_ids("allowed_token_ids", params.allowed_token_ids or ())
        self.check_ids("bad_words", tuple(i for word in params.bad_words for i in word))
        self._check_amateurs(params)
        if params.stop and self.tokenizer is None:
            raise ConfigError("stop: strings need a tokenizer; use stop_token_ids without one")
        self._check_context(params, context)
        self._check_size(len(prompt), params, pool)

    def _check_amateurs(self, params: GenerationParams) -> None:
        asked, loaded = params.amateurs, len(self.amateurs)
        if asked <= loaded:
            return
        field = "contrastive" if params.contrasts else "draft_tokens"
        if not loaded:
            raise ConfigError(f"{field}: no amateur model is loaded; give the engine one")
        raise ConfigError(
            f"{field}: got parameters for {asked} amateurs, {loaded} are loaded; give fewer"
        )

    def check_ids(self, name: str, ids: Sequence[int], *, count: int | None = None) -> None:
        """Raises ConfigError for ids that the model has not."""
        tokens = self.expert.num_tokens if count is None else count
        wrong = [i for i in ids if not 0 <= i < tokens]
        if wrong:
            raise ConfigError(
                f"{name}: token id {wrong[0]} is not in the vocabulary; ids are 0 to {tokens - 1}"
            )

    def _check_context(self, params: GenerationParams, context: Any) -> None:
        dims = [m.context_dim for m in self._read(params) if m.context_dim is not None]
        if context is None:
            if dims:
                raise ConfigError(
                    f"context: the model reads one by cross attention; give floats (j, {dims[0]})"
                )
            return
        if not dims:
            raise ConfigError("context: the model has no cross attention to read it; leave it out")
        fits = isinstance(context, Tensor) and context.is_floating_point() and context.ndim == 2
        for dim in dims:
            if not fits or context.shape[0] == 0 or context.shape[1] != dim:
                given = type(context).__name__
                if isinstance(context, Tensor):
                    given = f"{context.dtype} {tuple(context.shape)}"
                raise ConfigError(f"context: got {given}; give floats (j, {dim}) with j >= 1")

    def _check_size(self, prompt_tokens: int, params: GenerationParams, pool: KVPool) -> None:
        total = prompt_tokens + params.max_tokens
        longest = self.longest(*self._read(params))
        if total > longest:
            raise ConfigError(
                f"prompt of {prompt_tokens} tokens + max_tokens {params.max_tokens} = {total}, "
                f"more than the limit of {longest}; shorten the prompt or lower max_tokens"
            )
        if params.width > self.config.max_sequences:
            field = params.width_field
            raise ConfigError(
                f"{field}: got {params.width}, more than the engine's max_sequences "
                f"{self.config.max_sequences}; lower {field} or raise max_sequences"
            )
        needed = params.width * pool.most_pages(total)
        if needed > pool.num_pages:
            raise ConfigError(
                f"the request may need {needed} KV pages, the pool has {pool.num_pages}; "
                "lower max_tokens or the number of sequences, or raise pool_tokens"
            )


def required_ids(tokenizer: Tokenizer) -> int:
    """Ids that a model must have for it; without a word of its own about that, all."""
    return int(getattr(tokenizer, "required_ids", tokenizer.vocab_size))


def _amateur_names(count: int) -> list[str]:
    return [f"amateur {i}" if count > 1 else "amateur" for i in range(count)]
