"""The decode engine: many requests, one forward pass per step.

Example:
    >>> engine = Engine(model, tokenizer=tokenizer, eos_ids=(tokenizer.eot_id,))
    >>> engine.generate([tokenizer.encode("def ")], GenerationParams(max_tokens=32)).choices
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.config import ConfigError, derive_seed
from xtdist.decode.autoregression import Autoregression
from xtdist.decode.complete import complete
from xtdist.decode.denoiser import as_denoiser
from xtdist.decode.given import as_ids, as_made, as_nets, check_tokenizer, fresh_seed
from xtdist.decode.infilling import Infilling
from xtdist.decode.kv_cache import KVPool
from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.decode.outputs import Completion, Output, QueueFull, RequestFailed
from xtdist.decode.params import EngineConfig, GenerationParams
from xtdist.decode.processors import LogitsProcessor
from xtdist.decode.request import Extras, Request
from xtdist.decode.scheduler import Scheduler, Work
from xtdist.decode.speculative import DraftCount
from xtdist.decode.stats import EngineStats
from xtdist.decode.stopping import Tokenizer
from xtdist.decode.stream import Mail, OutputStream
from xtdist.decode.undo import Undo


class Way(Protocol):
    """How requests of one kind are run. ``recomputes``: as the engine's."""

    recomputes: str
    pool: KVPool
    longest: int
    drafts: DraftCount

    def request(
        self, name: str, prompt: tuple[int, ...], params: object, *, seed: int, extras: Extras
    ) -> Request: ...
    def compile(self, params: object) -> None: ...
    def advance(self, work: list[Work]) -> list[Output]: ...


class Engine:
    """Continues prompts with one model, or with an expert and amateurs in step; or fills masks
    with a bidirectional one, a denoising step of a sequence costing as much of a step's budget as
    it has tokens. A request's parameters say which.

    A request's tokens do not depend on what else is running: draws are a function of its seed, the
    position and the token. (Logits of another batch shape may differ in the last bits.)
    A model that can't be cached exactly is run over whole sequences at every step: the same tokens,
    slowly; ``recomputes`` then says why, and is empty otherwise.
    Not thread-safe: one thread calls ``add``, ``step`` and ``abort``.

    Args:
        model: a ``TransformerWrapper``, a training wrapper around one, or a ``Denoiser``; it stays
            where it is and in the mode it is in.
        amateur: the weaker model of contrastive decoding, which also drafts; same vocabulary, any
            size. Of several, the first one drafts, and a request is contrasted with as many as it
            has ``ContrastiveParams``, in order.
        tokenizer: gives text; without it, outputs hold token ids only.
        eos_ids: ids that end a sequence (unless a request ignores them).
        banned_ids: ids that are never generated, like mask and padding.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        amateur: nn.Module | Sequence[nn.Module] | None = None,
        tokenizer: Tokenizer | None = None,
        eos_ids: Iterable[int] = (),
        banned_ids: Iterable[int] = (),
        config: EngineConfig | None = None,
    ) -> None:
        """Raises ConfigError for models that can't be served, alone or together."""
        given = EngineConfig() if config is None else config
        self.config = as_made(given, EngineConfig, name="config")
        self.tokenizer = tokenizer = check_tokenizer(tokenizer)
        self.eos_ids = as_ids(eos_ids, name="eos_ids")
        banned_ids = as_ids(banned_ids, name="banned_ids")
        self._requests: dict[str, Request] = {}
        self._mail = Mail()
        self._added = self._steps = self._given_out = 0
        self._numbers = itertools.count()
        self._seed = self.config.seed if self.config.seed is not None else fresh_seed()
        self._way = self._way_for(model, amateur, banned_ids)
        self.recomputes, self.pool = self._way.recomputes, self._way.pool
        self.scheduler = Scheduler(self.pool, self.config)

    def _way_for(
        self,
        model: nn.Module,
        amateur: nn.Module | Sequence[nn.Module] | None,
        banned_ids: tuple[int, ...],
    ) -> Way:
        denoiser = as_denoiser(model)
        if denoiser is None:
            return Autoregression(
                as_nets(model, amateur),
                tokenizer=self.tokenizer,
                eos_ids=self.eos_ids,
                banned_ids=banned_ids,
                config=self.config,
            )
        if amateur is not None:
            raise ConfigError("amateur: a model that fills masks has no use for one; leave it out")
        return Infilling(
            denoiser,
            tokenizer=self.tokenizer,
            eos_ids=self.eos_ids,
            banned_ids=banned_ids,
            config=self.config,
        )

    @property
    def drafts(self) -> DraftCount:
        """How many tokens were drafted so far, and how many of them the expert took."""
        return self._way.drafts

    @property
    def longest(self) -> int:
        """Tokens that a sequence may have, prompt included."""
        return self._way.longest

    @property
    def full(self) -> bool:
        """Whether ``max_waiting`` requests wait."""
        return len(self.scheduler.waiting) >= self.config.max_waiting

    @property
    def has_work(self) -> bool:
        """Whether a request is waiting or running, or an output is not read yet."""
        return bool(self._requests or self._mail.waits)

    def add(
        self,
        prompt_ids: Sequence[int],
        params: GenerationParams | MaskPredictParams,
        *,
        request_id: str | None = None,
        context: Float[Tensor, "j d"] | None = None,
        processor: LogitsProcessor | None = None,
        salt: str = "",
    ) -> str:
        """Queue a request; returns its id. ``context``: what cross attention reads; ``processor``
        changes the scores before a token is chosen. Requests with different ``salt`` never share
        what was computed for the other.
        To fill masks, ``prompt_ids`` are the sequence with the mask where a token is wanted.

        Raises:
            ConfigError: a prompt or parameters that can't be honoured.
            QueueFull: ``max_waiting`` requests wait already.
        """
        prompt = as_ids(prompt_ids, name="prompt")
        if self.full:
            raise QueueFull(
                f"the engine's queue is full: {self.config.max_waiting} requests wait already; "
                "ask again later or raise max_waiting"
            )
        name = request_id
        if name is None:  # never a second time, nor one that a caller has taken
            free = (f"request-{i}" for i in self._numbers)
            name = next(name for name in free if name not in self._requests)
        if name in self._requests:
            raise ConfigError(f"request_id: {name!r} is in use; give every request its own")
        own = getattr(params, "seed", None)
        seed = derive_seed(self._seed, self._added) if own is None else own
        extras = Extras(context=context, processor=processor, salt=salt)
        request = self._way.request(name, prompt, params, seed=seed, extras=extras)
        self._added += 1
        self._requests[name] = request
        self.scheduler.waiting.append(request)
        return name

    def step(self) -> list[Output]:
        """One forward pass; returns what is new, but for requests that are read as streams. Empty
        if there is nothing to do.

        Raises:
            RequestFailed: a request failed by itself; step again, the others go on.
        """
        self.pump()
        return self._mail.take()

    @torch.inference_mode()
    def pump(self) -> None:
        """One forward pass; outputs wait for the stream, or the ``step``, that reads them.

        Whatever is raised in it, nothing of the step has happened then: it may be tried again, or
        requests aborted. Where one request alone is to blame, that one is dropped instead, and its
        reader is told.
        """
        work = self._plan()
        if not work:
            return
        requests = {id(w.request): w.request for w in work}.values()
        undo = Undo(requests)
        try:
            outputs = self._way.advance(work)
        except BaseException as e:
            undo.restore(self.pool, self._requests.values())
            if not isinstance(e, RequestFailed):
                raise
            self._forget(self._requests[e.request_id])
            self._mail.failures[e.request_id] = e
            return
        self._steps += 1
        self._given_out += sum(len(o.filled or o.token_ids) for o in outputs)
        self._mail.sort(outputs)
        for request in requests:
            if not request.sequences:
                self._forget(request)

    def _plan(self) -> list[Work]:
        try:
            work = self.scheduler.plan()
        except BaseException:
            self.scheduler.restart(self._requests.values())
            raise
        if not work and self._requests:
            raise RuntimeError(f"the engine has no work for {sorted(self._requests)}; report this")
        return work

    def stream(
        self,
        prompt_ids: Sequence[int],
        params: GenerationParams | MaskPredictParams,
        *,
        context: Float[Tensor, "j d"] | None = None,
        processor: LogitsProcessor | None = None,
        salt: str = "",
    ) -> OutputStream:
        """The outputs of a new request as they come; leaving the loop aborts it. Raises as ``add``.

        Example:
            >>> for output in engine.stream(prompt, GenerationParams(max_tokens=64)):
            ...     print(output.text, end="")
        """
        name = self.add(prompt_ids, params, context=context, processor=processor, salt=salt)
        return OutputStream(self, name, self._mail)

    def abort(self, request_id: str) -> bool:
        """Drop a request and free its pages; False if it is not (or no longer) known."""
        request = self._requests.get(request_id)
        if request is not None:
            self._forget(request)
            self._mail.drop(request_id)
        return request is not None

    def compile(self, params: GenerationParams | MaskPredictParams) -> None:
        """Compile the grammar of a request to come, so that ``add`` need not. The one method that
        any thread may call.

        Raises:
            ConfigError: a grammar that can't be used.
        """
        self._way.compile(params)

    def knows(self, request_id: str) -> bool:
        """Whether a request is waiting or running here."""
        return request_id in self._requests

    @property
    def waiting(self) -> frozenset[str]:
        """The requests that wait for room."""
        return frozenset(r.id for r in self.scheduler.waiting)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: GenerationParams | MaskPredictParams,
        *,
        contexts: Sequence[Float[Tensor, "j d"] | None] | None = None,
        processor: LogitsProcessor | None = None,
    ) -> list[Completion]:
        """Run all prompts to their end, many at a time; completions in the order of the prompts.
        ``contexts``: one for each prompt; ``processor``: one for all, and what it raises ends the
        call."""
        return complete(self, self._mail, prompts, params, contexts=contexts, processor=processor)

    def stats(self) -> EngineStats:
        """What it has done and does; between steps."""
        running, drafts = self.scheduler.running, self.drafts
        free, cached = self.pool.free, self.pool.cached
        return EngineStats(
            running=len(running),
            waiting=len(self.scheduler.waiting),
            sequences=sum(len(r.sequences) for r in running),
            pages_used=self.pool.num_pages - free,
            pages_cached=cached,
            pages_total=self.pool.num_pages,
            prompt_tokens=self.scheduler.prompt_tokens,
            prefix_hit_tokens=self.scheduler.hit_tokens,
            generated_tokens=self._given_out,
            preemptions=self.scheduler.preemptions,
            drafted=drafts.drafted,
            accepted=drafts.accepted,
            steps=self._steps,
        )

    def _forget(self, request: Request) -> None:
        self.scheduler.remove(request)
        del self._requests[request.id]
