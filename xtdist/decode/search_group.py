"""The candidates of contrastive search in the engine: forks over shared pages, and the choice."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from torch import Tensor

from xtdist.decode.continuation import announce
from xtdist.decode.contrastive_search import Candidate, Search
from xtdist.decode.kv_cache import KVPool
from xtdist.decode.lockstep import Ready, StepLogits
from xtdist.decode.outputs import Output
from xtdist.decode.penalties import adjust
from xtdist.decode.request import Sequence
from xtdist.decode.sampling import not_numbers, record_logprob


@dataclass
class SearchGroup:
    """Takes the candidates of a request one token further. ``banned`` ids are never chosen."""

    pool: KVPool
    banned: Tensor | None

    def advance(self, group: Seq[Ready], logits: StepLogits) -> list[Output]:
        """``group``: all candidates of one request, or its one sequence before there are any. The
        request has no sequences left once it is finished."""
        request, ready = group[0].request, group[0]
        search = request.search
        assert search is not None
        outputs = []
        if search.candidates:
            hidden = [r.hidden for r in group if r.hidden is not None]
            best = search.best(hidden)
            ready, logprob = group[best], search.candidates[best].logprob
            for r in group:
                if r is not ready:
                    self.pool.release(r.sequence.table)
            request.sequences = [ready.sequence]
            search.choose(hidden[best])
            outputs.append(announce(self.pool, request, ready.sequence, logprob=logprob))
        if request.sequences:
            search.candidates = self._candidates(ready, logits)
            if not search.candidates:
                return [*outputs, announce(self.pool, request, ready.sequence, dry=True)]
            request.sequences = self._fork(ready.sequence, search)
        return outputs

    def _candidates(self, ready: Ready, logits: StepLogits) -> list[Candidate]:
        """The ``top_k`` most likely tokens among those that may come at all, best first."""
        params = ready.request.params
        raw = logits.experts([ready])
        scores = raw.clone()
        adjust(scores, [ready.state], self.banned)
        if bool(scores.isnan().any()):
            raise not_numbers(ready.request.id)
        values, ids = scores.softmax(-1)[0].topk(min(params.top_k, scores.shape[-1]))
        return [
            Candidate(
                token,
                probability,
                None
                if params.logprobs is None
                else record_logprob(raw[0], token, top=params.logprobs),
            )
            for token, probability in zip(ids.tolist(), values.tolist(), strict=True)
            if probability > 0
        ]

    def _fork(self, sequence: Sequence, search: Search) -> list[Sequence]:
        """A sequence for each candidate; the first takes over the table, the others share it."""
        tables = [sequence.table]
        tables += [self.pool.fork(sequence.table) for _ in search.candidates[1:]]
        return [
            Sequence(tokens=[*sequence.tokens, c.token], table=table, stream=sequence.stream)
            for c, table in zip(search.candidates, tables, strict=True)
        ]
