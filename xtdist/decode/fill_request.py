"""Requests to fill masks: what one is, and what is refused before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from xtdist.config import ConfigError
from xtdist.decode.denoiser import Denoiser
from xtdist.decode.kv_cache import KVPool, PageTable
from xtdist.decode.maskpredict import Filling, MaskPredictParams
from xtdist.decode.params import EngineConfig, GenerationParams
from xtdist.decode.request import Request
from xtdist.decode.request import Sequence as Continuing
from xtdist.decode.stopping import TextStream, Tokenizer


@dataclass(eq=False, kw_only=True)
class FillRequest(Request):
    """A sequence whose masks are to be filled. It runs whole in every step and keeps no pages."""

    params: GenerationParams = field(default_factory=GenerationParams)  # read by nobody
    filling: Filling
    shown: int = 0

    @property
    def whole(self) -> bool:
        """Its positions see each other, so they run in one pass."""
        return True


class NoPages(KVPool):
    """Of an engine that keeps nothing between steps: always room."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def most_pages(self, tokens: int) -> int:
        """None."""
        return 0

    def reserve(self, wanted: Sequence[tuple[PageTable, int]]) -> bool:
        """There is nothing to reserve."""
        return True


class FillAdmission:
    """Makes requests to fill masks from what a caller gives.

    Args:
        banned_ids: ids that are never filled in; those that the tokenizer lacks are added.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        tokenizer: Tokenizer | None,
        banned_ids: Iterable[int],
        config: EngineConfig,
    ) -> None:
        """Raises ConfigError for a tokenizer that does not fit and for ids that do not exist."""
        self.denoiser, self.tokenizer = denoiser, tokenizer
        known = denoiser.num_tokens if tokenizer is None else tokenizer.vocab_size
        if known > denoiser.num_tokens:
            raise ConfigError(
                f"tokenizer: it has {known} tokens, the model {denoiser.num_tokens}; "
                "give the tokenizer that the model was trained with"
            )
        self.banned = {*banned_ids, *range(known, denoiser.num_tokens)}
        wrong = [i for i in self.banned if not 0 <= i < denoiser.num_tokens]
        if wrong:
            raise ConfigError(
                f"banned_ids: token id {wrong[0]} is not in the vocabulary; ids are 0 to "
                f"{denoiser.num_tokens - 1}"
            )
        self.longest = min(
            denoiser.max_seq_len,
            config.max_sequence_tokens or denoiser.max_seq_len,
            config.max_step_tokens,
        )

    def request(
        self, name: str, tokens: tuple[int, ...], params: MaskPredictParams, *, seed: int
    ) -> FillRequest:
        """A request to fill the masks among ``tokens``.

        Raises:
            ConfigError: tokens or parameters that can't be honoured.
        """
        mask_id = self._mask_id(params)
        self._check(tokens, params, mask_id)
        return FillRequest(
            id=name,
            prompt=tokens,
            seed=seed,
            ends=(),
            sequences=[Continuing(tokens=list(tokens), stream=TextStream(self.tokenizer))],
            filling=Filling.of(tokens, params, mask_id=mask_id, seed=seed),
        )

    def _mask_id(self, params: MaskPredictParams) -> int:
        own, asked = self.denoiser.mask_id, params.mask_id
        if own is None and asked is None:
            raise ConfigError("mask_id: the model does not say which token marks a mask; give it")
        if own is not None and asked not in (None, own):
            raise ConfigError(f"mask_id: got {asked}, the model's is {own}; leave it out")
        mask_id = asked if own is None else own
        assert mask_id is not None
        if mask_id >= self.denoiser.num_tokens:
            raise ConfigError(
                f"mask_id: got {mask_id}; the model has ids 0 to {self.denoiser.num_tokens - 1}"
            )
        return mask_id

    def _check(self, tokens: tuple[int, ...], params: MaskPredictParams, mask_id: int) -> None:
        size = self.denoiser.num_tokens
        if not tokens:
            raise ConfigError("tokens: there are none; give what is known, and masks")
        wrong = [i for i in tokens if not 0 <= i < size]
        if wrong:
            raise ConfigError(
                f"tokens: id {wrong[0]} is not in the vocabulary; ids are 0 to {size - 1}"
            )
        if len(tokens) > self.longest:
            raise ConfigError(
                f"tokens: there are {len(tokens)}, more than the limit of {self.longest} (of the "
                "model's max_seq_len, the engine's max_sequence_tokens and max_step_tokens, the "
                "smallest); shorten them"
            )
        if params.order == "critic" and not self.denoiser.has_critic:
            raise ConfigError("order: got 'critic', but the model has none; use 'confidence'")
        if len({*self.banned, mask_id}) >= size:
            raise ConfigError("banned_ids: no id is left to fill in; ban fewer")
