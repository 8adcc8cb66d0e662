"""The beams of one request in the engine: scores, forks over shared pages, and the end."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from xtdist.decode.beam import Candidate, Finished
from xtdist.decode.continuation import stop_reason
from xtdist.decode.kv_cache import KVPool
from xtdist.decode.lockstep import Ready, StepLogits
from xtdist.decode.outputs import Output, RequestFailed
from xtdist.decode.penalties import adjust
from xtdist.decode.request import Request, Sequence
from xtdist.decode.sampling import Sampler, not_numbers
from xtdist.decode.stopping import Release, TextStream, Tokenizer


@dataclass
class BeamGroup:
    """Takes the running beams of a request one token further. ``banned`` ids are never chosen."""

    pool: KVPool
    tokenizer: Tokenizer | None
    banned: Tensor | None

    def advance(self, group: Seq[Ready], logits: StepLogits) -> list[Output]:
        """``group``: all beams of one request, best first. Outputs come when the search is over:
        the ``n`` best, with their scores; the request then has no sequences left. Fewer than ``n``
        are filled up with the best one; without any, all are empty and have no score."""
        request = group[0].request
        assert request.beams is not None
        parents = [r.sequence for r in group]

        def tokens_of(c: Candidate) -> tuple[int, ...]:
            return (*request.generated(parents[c.parent]), c.token)

        def ends(c: Candidate) -> bool:
            if c.token in request.ends:
                return True
            return bool(request.params.stop) and self._spell(request, tokens_of(c))[1].stopped

        scores = self._scores(group, logits)
        if bool(scores.amax(-1).isnan().any()):
            raise not_numbers(request.id)
        running = request.beams.advance(scores, ends=ends, tokens_of=tokens_of)
        request.branched = True
        if not request.beams.done:
            request.sequences = self._fork(parents, running)
            return []
        for parent in parents:
            self.pool.release(parent.table)
        request.sequences = []
        n = request.params.n
        best = request.beams.finished[:n]
        if not best:
            return [Output(request.id, i, finish_reason="exhausted") for i in range(n)]
        best += best[:1] * (n - len(best))
        return [self._output(request, i, finished) for i, finished in enumerate(best)]

    def _scores(self, group: Seq[Ready], logits: StepLogits) -> Float[Tensor, "r v"]:
        """Log-probabilities after bans, penalties and contrast, not normalised again; of stochastic
        beams those of the distribution that plain sampling draws from."""
        params = group[0].request.params
        if params.stochastic_beams:
            scores = logits.experts(group)
            adjust(scores, [r.state for r in group], self.banned)
            logits.contrast(scores, group)
            scores = Sampler([params] * len(group), scores.device).filtered(scores)
            ends_here = scores.isneginf().all(-1, keepdim=True)
            return scores.log_softmax(-1).masked_fill(ends_here, -math.inf)
        scores = logits.experts(group).log_softmax(-1)
        adjust(scores, [r.state for r in group], self.banned)
        logits.contrast(scores, group, logprobs=True)
        return scores

    def _fork(self, parents: Seq[Sequence], running: Seq[Candidate]) -> list[Sequence]:
        """The next beams. A parent's first child takes over its table, others share its pages."""
        taken: set[int] = set()
        children = []
        for c in running:
            parent = parents[c.parent]
            table = self.pool.fork(parent.table) if c.parent in taken else parent.table
            taken.add(c.parent)
            children.append(Sequence(tokens=[*parent.tokens, c.token], table=table))
        for i, parent in enumerate(parents):
            if i not in taken:
                self.pool.release(parent.table)
        return children

    def _spell(self, request: Request, tokens: Seq[int]) -> tuple[Release, TextStream]:
        """Tokens and text of a hypothesis, cut at a stop string, and what has shown them."""
        stream = TextStream.of(request.params, self.tokenizer)
        release = Release()
        try:
            for token in tokens:
                release = release + stream.push(token, visible=token not in request.ends)
                if stream.stopped:
                    return release, stream
            release = release + stream.finish()
        except Exception as e:  # the tokenizer's
            raise RequestFailed(request.id) from e
        return release, stream

    def _output(self, request: Request, index: int, finished: Finished) -> Output:
        release, stream = self._spell(request, finished.tokens)
        last = finished.tokens[-1]
        return Output(
            request_id=request.id,
            index=index,
            token_ids=release.token_ids,
            text=release.text,
            finish_reason="stop" if finished.ended else "length",
            score=finished.score,
            stop_reason=stop_reason(request, last, stream) if finished.ended else None,
        )
