"""The decode engine: many requests, one forward pass per step.

Example:
    >>> engine = Engine(model, tokenizer=tokenizer, eos_ids=(tokenizer.eot_id,))
    >>> engine.generate([tokenizer.encode("def ")], GenerationParams(max_tokens=32)).choices
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.config import ConfigError, derive_seed
from xtdist.decode.autoregression import Autoregression
from xtdist.decode.denoiser import Denoiser, as_denoiser
from xtdist.decode.denoising import Denoising
from xtdist.decode.fill_request import FillAdmission, FillRequest, NoPages
from xtdist.decode.given import (
    as_ids,
    as_made,
    as_net,
    as_prompts,
    check_tokenizer,
    of_prompt,
)
from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.decode.outputs import Completion, Output, QueueFull, RequestFailed, collect
from xtdist.decode.params import EngineConfig, GenerationParams
from xtdist.decode.processors import LogitsProcessor
from xtdist.decode.request import Request
from xtdist.decode.scheduler import Scheduler, Work
from xtdist.decode.speculative import DraftCount
from xtdist.decode.stopping import Tokenizer
from xtdist.decode.stream import Mail, OutputStream
from xtdist.decode.undo import Undo


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
        self._added = 0
        self._numbers = itertools.count()
        self._seed = self.config.seed if self.config.seed is not None else _fresh_seed()
        denoiser = as_denoiser(model)
        self._denoising: Denoising | None = None
        if denoiser is not None:
            self._denoise(denoiser, amateur, banned_ids)
            return
        self._text = Autoregression(
            as_net(model),
            _amateurs(amateur),
            tokenizer=tokenizer,
            eos_ids=self.eos_ids,
            banned_ids=banned_ids,
            config=self.config,
        )
        self.recomputes, self.pool = self._text.recomputes, self._text.pool
        self.scheduler = Scheduler(self.pool, self.config)

    def _denoise(self, denoiser: Denoiser, amateur: object, banned_ids: Iterable[int]) -> None:
        """Set up for a model that fills masks."""
        if amateur is not None:
            raise ConfigError("amateur: a model that fills masks has no use for one; leave it out")
        self._fill_admission = FillAdmission(
            denoiser, tokenizer=self.tokenizer, banned_ids=banned_ids, config=self.config
        )
        self._denoising = Denoising(
            denoiser, eos_ids=self.eos_ids, banned_ids=self._fill_admission.banned
        )
        self.recomputes = ""
        self.pool = NoPages()
        self.scheduler = Scheduler(self.pool, self.config)

    @property
    def drafts(self) -> DraftCount:
        """How many tokens were drafted so far, and how many of them the expert took."""
        return DraftCount() if self._denoising is not None else self._text.drafts

    @property
    def longest(self) -> int:
        """Tokens that a sequence may have, prompt included."""
        return self._fill_admission.longest if self._denoising is not None else self._text.longest

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
    ) -> str:
        """Queue a request; returns its id. ``context``: what cross attention reads; ``processor``
        changes the scores before a token is chosen.
        To fill masks, ``prompt_ids`` are the sequence with the mask where a token is wanted.

        Raises:
            ConfigError: a prompt or parameters that can't be honoured.
            QueueFull: ``max_waiting`` requests wait already.
        """
        prompt = as_ids(prompt_ids, name="prompt")
        if len(self.scheduler.waiting) >= self.config.max_waiting:
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
        request = self._request(name, prompt, params, context=context, processor=processor)
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
            outputs = self._advance(work)
        except BaseException as e:
            undo.restore(self.pool, self._requests.values())
            if not isinstance(e, RequestFailed):
                raise
            self._forget(self._requests[e.request_id])
            self._mail.failures[e.request_id] = e
            return
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

    def _advance(self, work: list[Work]) -> list[Output]:
        if self._denoising is None:
            return self._text.advance(work)
        filling = [w.request for w in work if isinstance(w.request, FillRequest)]
        return self._denoising.advance(filling)

    def stream(
        self,
        prompt_ids: Sequence[int],
        params: GenerationParams | MaskPredictParams,
        *,
        context: Float[Tensor, "j d"] | None = None,
        processor: LogitsProcessor | None = None,
    ) -> OutputStream:
        """The outputs of a new request as they come; leaving the loop aborts it. Raises as ``add``.

        Example:
            >>> for output in engine.stream(prompt, GenerationParams(max_tokens=64)):
            ...     print(output.text, end="")
        """
        name = self.add(prompt_ids, params, context=context, processor=processor)
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
        if isinstance(params, GenerationParams) and self._denoising is None:
            self._text.compile(params)

    def knows(self, request_id: str) -> bool:
        """Whether a request is waiting or running here."""
        return request_id in self._requests

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
        prompts = as_prompts(prompts)
        if contexts is not None and len(contexts) != len(prompts):
            raise ConfigError(
                f"contexts: got {len(contexts)} for {len(prompts)} prompts; give one for each"
            )
        outputs: dict[str, deque[Output]] = {}
        read = [None] * len(prompts) if contexts is None else contexts
        left = list(reversed(list(zip(prompts, read, strict=True))))
        try:
            while left or any(name in self._requests for name in outputs):
                while left and len(self.scheduler.waiting) < self.config.max_waiting:
                    prompt, context = left[-1]
                    with of_prompt(len(outputs), count=len(prompts)):
                        name = self.add(prompt, params, context=context, processor=processor)
                    outputs[name] = self._mail.open(name)
                    left.pop()
                self.pump()
                self._mail.check(outputs)
        finally:
            for name in outputs:
                self._mail.close(name)
                self.abort(name)
        return [collect(list(parts)) for parts in outputs.values()]

    def _request(
        self,
        name: str,
        prompt: tuple[int, ...],
        params: GenerationParams | MaskPredictParams,
        *,
        context: Any,
        processor: LogitsProcessor | None,
    ) -> Request:
        """What the engine keeps of a request. Raises ConfigError for what it can't honour."""
        if self._denoising is None:
            why = "the model is causal"
            params = as_made(params, GenerationParams, name="params", why=why)
            return self._text.request(
                name,
                prompt,
                params,
                seed=self._seed_for(params.seed),
                context=context,
                processor=processor,
            )
        params = as_made(params, MaskPredictParams, name="params", why="the model fills masks")
        if processor is not None:
            raise ConfigError("processor: a model that fills masks has none; leave it out")
        if context is not None:
            raise ConfigError("context: the model has no cross attention to read it; leave it out")
        return self._fill_admission.request(name, prompt, params, seed=self._seed_for(params.seed))

    def _seed_for(self, asked: int | None) -> int:
        """The root of the draws of the request that is being added."""
        return derive_seed(self._seed, self._added) if asked is None else asked

    def _forget(self, request: Request) -> None:
        self.scheduler.remove(request)
        del self._requests[request.id]


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    params: GenerationParams | MaskPredictParams,
    **options: Any,
) -> list[Completion]:
    """Continue ``prompts``, or fill their masks, with an engine made for this call; ``options`` are
    ``Engine``'s. Raises as ``Engine`` and ``Engine.add``."""
    each = params.width if isinstance(params, GenerationParams) else 1
    width = min(each * max(1, len(as_prompts(prompts))), max(each, 8))
    options.setdefault("config", EngineConfig(max_sequences=width))
    return Engine(model, **options).generate(prompts, params)


def stream(
    model: Any,
    prompt_ids: Sequence[int],
    params: GenerationParams | MaskPredictParams,
    **options: Any,
) -> OutputStream:
    """The outputs of one request as they come, of an engine made for this call; ``options`` are
    ``Engine``'s. Raises as ``Engine`` and ``Engine.add``."""
    return Engine(model, **options).stream(prompt_ids, params)


def _amateurs(given: nn.Module | Sequence[nn.Module] | None) -> tuple[nn.Module, ...]:
    if given is None:
        return ()
    several = tuple(given) if isinstance(given, Sequence | nn.ModuleList) else (given,)
    names = [f"amateur {i}" if len(several) > 1 else "amateur" for i in range(len(several))]
    return tuple(as_net(a, name=name) for a, name in zip(several, names, strict=True))


def _fresh_seed() -> int:
    """62 bits from the operating system."""
    low, high = np.random.SeedSequence().generate_state(2)
    return (int(high) << 30) ^ int(low)
