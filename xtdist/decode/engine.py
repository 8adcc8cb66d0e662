"""The decode engine: many requests, one forward pass per step.

Example:
    >>> engine = Engine(model, tokenizer=tokenizer, eos_ids=(tokenizer.eot_id,))
    >>> engine.generate([tokenizer.encode("def ")], GenerationParams(max_tokens=32)).choices
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from xtdist.config import ConfigError, derive_seed
from xtdist.decode.admission import Limits, check_models, check_request
from xtdist.decode.beam import BeamSearch
from xtdist.decode.beam_group import BeamGroup
from xtdist.decode.continuation import Continuation, Ready, StepLogits
from xtdist.decode.kv_cache import KVPool
from xtdist.decode.outputs import Completion, Output, QueueFull, collect
from xtdist.decode.params import EngineConfig, GenerationParams
from xtdist.decode.request import Request
from xtdist.decode.request import Sequence as Continuing
from xtdist.decode.runner import Runner
from xtdist.decode.scheduler import Scheduler, Work
from xtdist.decode.stopping import TextStream, Tokenizer


class Engine:
    """Continues prompts with one model, or with an expert and an amateur in step.

    A request's tokens do not depend on what else is running: draws are a function of its seed, the
    position and the token. (Logits of another batch shape may differ in the last bits.)
    Not thread-safe: one thread calls ``add``, ``step`` and ``abort``.

    Args:
        model: a causal ``TransformerWrapper``; it stays where it is and in the mode it is in.
        amateur: the weaker model of contrastive decoding; same vocabulary, any size.
        tokenizer: gives text; without it, outputs hold token ids only.
        eos_ids: ids that end a sequence (unless a request ignores them).
        banned_ids: ids that are never generated, like mask and padding.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        amateur: nn.Module | None = None,
        tokenizer: Tokenizer | None = None,
        eos_ids: Iterable[int] = (),
        banned_ids: Iterable[int] = (),
        config: EngineConfig | None = None,
    ) -> None:
        """Raises ConfigError for models that can't be served, alone or together."""
        self.config = config or EngineConfig()
        self.tokenizer = tokenizer
        self.eos_ids = tuple(eos_ids)
        self.limits = check_models(model, amateur, tokenizer)
        device = next(model.parameters()).device
        self.pool = self._make_pool(device, self.limits, models=2 if amateur is not None else 1)
        self.scheduler = Scheduler(self.pool, self.config)
        self.expert = Runner(model, self.pool.stores[0])
        self.amateur = Runner(amateur, self.pool.stores[1]) if amateur is not None else None
        unused = range(self.limits.tokenizer_tokens, self.limits.num_tokens)
        banned = sorted({*banned_ids, *unused})
        ids = torch.tensor(banned, device=device) if banned else None
        self._continuation = Continuation(self.pool, tokenizer, ids)
        self._beams = BeamGroup(self.pool, tokenizer, ids)
        self._requests: dict[str, Request] = {}
        self._added = 0
        self._seed = self.config.seed if self.config.seed is not None else _fresh_seed()

    @property
    def has_work(self) -> bool:
        """Whether a request is waiting or running."""
        return bool(self._requests)

    def add(
        self, prompt_ids: Sequence[int], params: GenerationParams, *, request_id: str | None = None
    ) -> str:
        """Queue a request; returns its id.

        Raises:
            ConfigError: a prompt or parameters that can't be honoured.
            QueueFull: ``max_waiting`` requests wait already.
        """
        prompt = tuple(int(t) for t in prompt_ids)
        check_request(prompt, params, limits=self.limits, engine=self)
        if len(self.scheduler.waiting) >= self.config.max_waiting:
            raise QueueFull(
                f"the engine's queue is full: {self.config.max_waiting} requests wait already; "
                "ask again later or raise max_waiting"
            )
        name = request_id if request_id is not None else f"request-{self._added}"
        if name in self._requests:
            raise ConfigError(f"request_id: {name!r} is in use; give every request its own")
        request = self._build(name, prompt, params)
        self._added += 1
        self._requests[name] = request
        self.scheduler.waiting.append(request)
        return name

    def step(self) -> list[Output]:
        """One forward pass; returns what is new. Empty if there is nothing to do."""
        with torch.inference_mode():
            work = self.scheduler.plan()
            if not work:
                return []
            ready, logits = self._run(work)
            outputs = self._advance(ready, logits)
        for request in {id(r.request): r.request for r in ready}.values():
            if not request.sequences:
                self._forget(request)
        return outputs

    def abort(self, request_id: str) -> bool:
        """Drop a request and free its pages; False if it is not (or no longer) known."""
        request = self._requests.get(request_id)
        if request is not None:
            self._forget(request)
        return request is not None

    def knows(self, request_id: str) -> bool:
        """Whether a request is waiting or running here."""
        return request_id in self._requests

    def generate(
        self, prompts: Sequence[Sequence[int]], params: GenerationParams
    ) -> list[Completion]:
        """Run all prompts to their end, many at a time; completions in the order of the prompts."""
        outputs: dict[str, list[Output]] = {}
        left = list(reversed(prompts))
        try:
            while left or any(name in self._requests for name in outputs):
                while left and len(self.scheduler.waiting) < self.config.max_waiting:
                    outputs[self.add(left[-1], params)] = []
                    left.pop()
                for output in self.step():
                    if output.request_id in outputs:
                        outputs[output.request_id].append(output)
        finally:
            for name in outputs:
                self.abort(name)
        return [collect(parts) for parts in outputs.values()]

    def _run(self, work: list[Work]) -> tuple[list[Ready], StepLogits]:
        """Both models over the step's tokens; which sequences can go on, with their logits."""
        expert = self.expert.run(work)
        contrastive = [w for w in work if w.request.contrastive]
        amateur = None
        if contrastive:
            assert self.amateur is not None
            amateur = self.amateur.run(contrastive)
        ready: list[Ready] = []
        amateur_row = 0
        for w in work:
            if not w.completes:
                continue
            ready.append(Ready(w.request, w.sequence, len(ready), amateur_row))
            amateur_row += w.request.contrastive
        for w in work:
            w.sequence.table.length += w.count
        return ready, StepLogits(expert, amateur)

    def _advance(self, ready: list[Ready], logits: StepLogits) -> list[Output]:
        groups: dict[int, list[Ready]] = {}
        for r in ready:
            if r.request.beams is not None:
                groups.setdefault(id(r.request), []).append(r)
        outputs = [o for group in groups.values() for o in self._beams.advance(group, logits)]
        drawn = [r for r in ready if r.request.beams is None]
        return outputs + (self._continuation.advance(drawn, logits) if drawn else [])

    def _build(self, name: str, prompt: tuple[int, ...], params: GenerationParams) -> Request:
        eos = () if params.ignore_eos else self.eos_ids
        ends = tuple(dict.fromkeys((*eos, *params.stop_token_ids)))
        seed = params.seed if params.seed is not None else derive_seed(self._seed, self._added)
        beams = None
        if params.uses_beams:
            beams = BeamSearch(
                width=params.num_beams,
                max_tokens=params.max_tokens,
                length_penalty=params.length_penalty,
                early_stopping=params.early_stopping,
                end_ids=len(ends),
            )
        stream = TextStream(self.tokenizer, params.stop)
        first = Continuing(tokens=list(prompt), stream=stream)
        return Request(name, prompt, params, seed, ends, [first], beams)

    def _forget(self, request: Request) -> None:
        self.scheduler.remove(request)
        del self._requests[request.id]

    def _make_pool(self, device: torch.device, limits: Limits, *, models: int) -> KVPool:
        """Pages for both models. A page is a whole sequence on CPU, where it is read as a view."""
        longest = limits.max_seq_len
        page = self.config.page_tokens or (longest if device.type == "cpu" else 256)
        page = min(page, longest)
        tokens = self.config.pool_tokens or self.config.max_sequences * -(-longest // page) * page
        if tokens < page:
            raise ConfigError(f"pool_tokens: got {tokens}, less than one page of {page} tokens")
        return KVPool(tokens // page, page, models=models)


def generate(
    model: Any, prompts: Sequence[Sequence[int]], params: GenerationParams, **options: Any
) -> list[Completion]:
    """Continue ``prompts`` with an engine made for this call; ``options`` are ``Engine``'s."""
    width = min(params.width * max(1, len(prompts)), max(params.width, 8))
    options.setdefault("config", EngineConfig(max_sequences=width))
    return Engine(model, **options).generate(prompts, params)


def _fresh_seed() -> int:
    """62 bits from the operating system."""
    low, high = np.random.SeedSequence().generate_state(2)
    return (int(high) << 30) ^ int(low)
