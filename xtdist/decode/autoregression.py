"""Continuing text: the models, the pool that they share, and every way to go on from a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.decode import resume
from xtdist.decode.admission import Admission
from xtdist.decode.beam import BeamSearch
from xtdist.decode.beam_group import BeamGroup
from xtdist.decode.compiled import check_compiles
from xtdist.decode.continuation import Continuation
from xtdist.decode.contrastive_search import Search
from xtdist.decode.dola import exit_layers
from xtdist.decode.given import as_made
from xtdist.decode.grammar import Grammars
from xtdist.decode.lockstep import Lockstep, Ready
from xtdist.decode.outputs import Output
from xtdist.decode.params import EngineConfig, GenerationParams
from xtdist.decode.prefix_cache import root_of
from xtdist.decode.processors import Allowed, LogitsProcessor
from xtdist.decode.prompt_scores import PromptScores
from xtdist.decode.request import Extras, Request
from xtdist.decode.request import Sequence as Continuing
from xtdist.decode.runner import make_runner
from xtdist.decode.scheduler import Work
from xtdist.decode.search_group import SearchGroup
from xtdist.decode.sizing import make_pool, shared_window
from xtdist.decode.speculative import DraftCount, Drafter
from xtdist.decode.step_cache import Context
from xtdist.decode.stochastic_beam import StochasticBeams
from xtdist.decode.stopping import TextStream, Tokenizer


class Autoregression:
    """What the engine runs for causal models; arguments as ``Engine``'s.

    ``recomputes``: why a model has no cache, empty if all have one. ``drafts`` counts speculation.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        tokenizer: Tokenizer | None,
        eos_ids: tuple[int, ...],
        banned_ids: Iterable[int],
        config: EngineConfig,
    ) -> None:
        """Raises ConfigError for models that can't be served, alone or together."""
        model, *amateurs = models
        self.model, self.tokenizer, self.eos_ids = model, tokenizer, eos_ids
        self.admission = Admission.check_models(model, amateurs, tokenizer=tokenizer, config=config)
        banned_ids = self.admission.known(banned_ids)
        self.admission.check_marks(eos_ids, banned_ids)
        limits = self.admission.models
        self.recomputes = " ".join(dict.fromkeys(m.cache.refused for m in limits)).strip()
        self._reference = next(model.parameters())
        device, longest = self._reference.device, self.admission.longest(limits[0])
        self.longest = longest
        cached = [m.cache for m in limits if not m.cache.refused]
        self.pool = make_pool(
            config,
            longest=longest,
            window=shared_window(cached, longest=longest),
            models=len(limits),
            on_cpu=device.type == "cpu",
            reuses=config.prefix_cache and not self.recomputes,
        )
        if config.compile_sequences:
            on_cpu = device.type == "cpu"
            for limit, name in zip(limits, self.admission.names, strict=True):
                check_compiles(limit, self.pool, longest=longest, name=name, on_cpu=on_cpu)
        banned = sorted({*banned_ids, *self.admission.unused_ids})
        ids: Tensor | None = torch.tensor(banned, device=device) if banned else None
        self._grammars = None if tokenizer is None else Grammars(tokenizer, frozenset(eos_ids))
        self.drafts = DraftCount()
        expert, *weaker = (
            make_runner(m, limit, store, compile_sequences=config.compile_sequences)
            for m, limit, store in zip(models, limits, self.pool.stores, strict=True)
        )
        drafter = Drafter(weaker[0], ids, self.drafts) if weaker else None
        self._models = Lockstep(self.pool, expert, tuple(weaker), drafter)
        self._continuation = Continuation(self.pool, tokenizer, ids, self.drafts)
        self._beams = BeamGroup(self.pool, tokenizer, ids)
        self._search = SearchGroup(self.pool, ids)

    def request(
        self,
        name: str,
        prompt: tuple[int, ...],
        params: object,
        *,
        seed: int,
        extras: Extras,
    ) -> Request:
        """What the engine keeps of a request. Raises ConfigError for what it can't honour."""
        params = as_made(params, GenerationParams, name="params", why="the model is causal")
        context = extras.context
        prompt, taken = resume.split(prompt, params)
        self.admission.check_ids("prompt", taken)
        self.admission.check(prompt, params, context=context, pool=self.pool)
        eos = () if params.ignore_eos else self.eos_ids
        ends = tuple(dict.fromkeys((*eos, *params.stop_token_ids)))
        stream = TextStream.of(params, self.tokenizer)
        request = Request(name, prompt, params, seed, ends)
        request.sequences = [Continuing(tokens=[*prompt, *taken], stream=stream)]
        request.resumed = resume.push(taken, stream, ends)
        request.processors = tuple(self._processors(params, ends, extras))
        if params.uses_beams:
            request.beams = _beams(params, seed=seed, ends=ends)
        if params.penalty_alpha > 0:
            request.search = Search(params.penalty_alpha)
        if params.dola is not None:
            request.exits = exit_layers(params.dola, self.model)
        if params.prompt_logprobs is not None:
            request.scores = PromptScores(name, prompt, params.prompt_logprobs)
        if context is None:
            request.root = root_of(extras.salt, models=1 + params.amateurs)
        else:
            request.context = Context(context.detach().to(self._reference))
        return request

    def _processors(
        self, params: GenerationParams, ends: tuple[int, ...], extras: Extras
    ) -> Iterator[LogitsProcessor]:
        if params.allowed_token_ids is not None:
            yield Allowed(params.allowed_token_ids, self._reference.device)
        if params.grammar is not None:
            yield self._grammar().processor(params, ends=ends)
        if extras.processor is not None:
            yield extras.processor

    def compile(self, params: object) -> None:
        """Compile its grammar, if it has one, before the request comes; in any thread.

        Raises:
            ConfigError: a grammar that can't be used.
        """
        if isinstance(params, GenerationParams) and params.grammar is not None:
            self._grammar().compile(params.grammar)

    def _grammar(self) -> Grammars:
        if self._grammars is None:
            raise ConfigError("grammar: it needs a tokenizer; give the engine one")
        return self._grammars

    def advance(self, work: list[Work]) -> list[Output]:
        """Run the work through the models and take every sequence further that can go on."""
        ready, logits = self._models.run(work)
        scored = {w.request.id: w.request for w in work if w.request.scores is not None}
        groups: dict[int, list[Ready]] = {}
        drawn: list[Ready] = []
        outputs: list[Output] = []
        for r in ready:
            if not r.request.params.max_tokens:
                outputs += self._only_scores(r.request)
                continue
            grouped = r.request.beams is not None or r.request.search is not None
            (groups.setdefault(id(r.request), []) if grouped else drawn).append(r)
        for group in groups.values():
            way = self._search if group[0].request.beams is None else self._beams
            outputs += way.advance(group, logits)
        if drawn:
            outputs += self._continuation.advance(drawn, logits)
        for w in work:
            if w.drafted:
                self.pool.trim(w.sequence.table)
        return [_with_scores(o, scored) for o in outputs] if scored else outputs

    def _only_scores(self, request: Request) -> list[Output]:
        """The end of a request that generates nothing."""
        for sequence in request.sequences:
            self.pool.release(sequence.table)
        request.sequences = []
        return [Output(request.id, i, finish_reason="length") for i in range(request.params.n)]


def _with_scores(output: Output, scored: dict[str, Request]) -> Output:
    """The first output of a request has what its prompt scored."""
    request = scored.get(output.request_id)
    if request is None or request.scores is None:
        return output
    found, request.scores = tuple(request.scores.found), None
    return replace(output, prompt_logprobs=found)


def _beams(
    params: GenerationParams, *, seed: int, ends: tuple[int, ...]
) -> BeamSearch | StochasticBeams:
    if params.stochastic_beams:
        return StochasticBeams(params.num_beams, params.max_tokens, seed)
    return BeamSearch(
        width=params.num_beams,
        max_tokens=params.max_tokens,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping or False,
        end_ids=len(ends),
    )
