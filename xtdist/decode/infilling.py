"""Filling masks: the model, and what becomes of requests for it."""

from __future__ import annotations

from collections.abc import Iterable

from xtdist.config import ConfigError
from xtdist.decode.denoiser import Denoiser
from xtdist.decode.denoising import Denoising
from xtdist.decode.fill_request import FillAdmission, FillRequest, NoPages
from xtdist.decode.given import as_made
from xtdist.decode.kv_cache import KVPool
from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.decode.outputs import Output
from xtdist.decode.params import EngineConfig
from xtdist.decode.request import Extras
from xtdist.decode.scheduler import Work
from xtdist.decode.speculative import DraftCount
from xtdist.decode.stopping import Tokenizer


class Infilling:
    """What the engine runs for models that fill masks; arguments as ``Engine``'s. It keeps nothing
    between steps."""

    recomputes = ""

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        tokenizer: Tokenizer | None,
        eos_ids: tuple[int, ...],
        banned_ids: Iterable[int],
        config: EngineConfig,
    ) -> None:
        """Raises ConfigError for a tokenizer that does not fit and for ids that do not exist."""
        self._admission = FillAdmission(
            denoiser, tokenizer=tokenizer, banned_ids=banned_ids, config=config
        )
        self._denoising = Denoising(denoiser, eos_ids=eos_ids, banned_ids=self._admission.banned)
        self.longest = self._admission.longest
        self.pool: KVPool = NoPages()
        self.drafts = DraftCount()

    def request(
        self, name: str, prompt: tuple[int, ...], params: object, *, seed: int, extras: Extras
    ) -> FillRequest:
        """What the engine keeps of a request. Raises ConfigError for what it can't honour."""
        params = as_made(params, MaskPredictParams, name="params", why="the model fills masks")
        if extras.processor is not None:
            raise ConfigError("processor: a model that fills masks has none; leave it out")
        if extras.context is not None:
            raise ConfigError("context: the model has no cross attention to read it; leave it out")
        return self._admission.request(name, prompt, params, seed=seed)

    def compile(self, params: object) -> None:
        """There is nothing to compile."""

    def advance(self, work: list[Work]) -> list[Output]:
        """A denoising step of every request."""
        return self._denoising.advance(
            [w.request for w in work if isinstance(w.request, FillRequest)]
        )
