"""From the logits of a step to the next token of every sequence that is sampled or greedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from torch import Tensor

from xtdist.decode.kv_cache import KVPool
from xtdist.decode.lockstep import Ready, StepLogits
from xtdist.decode.outputs import FinishReason, Output, RequestFailed, TokenLogprob, best_of
from xtdist.decode.penalties import adjust
from xtdist.decode.request import Request, Sequence
from xtdist.decode.sampling import NOTHING, Sampler, record_logprob
from xtdist.decode.speculative import DraftCount
from xtdist.decode.stopping import Release, TextStream, Tokenizer


@dataclass
class Continuation:
    """Chooses tokens, ends sequences, and says what is new. ``banned`` ids are never chosen."""

    pool: KVPool
    tokenizer: Tokenizer | None
    banned: Tensor | None
    drafts: DraftCount = field(default_factory=DraftCount)
    _sampler: Sampler | None = field(default=None, repr=False)

    def advance(self, ready: Seq[Ready], logits: StepLogits) -> list[Output]:
        """One token further for every ready sequence, and one more for every accepted draft. A
        finished one leaves its request."""
        ready = self._branch(ready)
        rows = [r.state for r in ready]
        scores = logits.experts(ready)
        logprobs = any(row.params.recorded is not None for row in rows)
        raw = scores.clone() if logprobs else scores
        adjust(scores, rows, self.banned)
        logits.contrast(scores, ready)
        if self._sampler is None or not self._sampler.fits(rows):
            self._sampler = Sampler([row.params for row in rows], scores.device)
        tokens = self._sampler.draw(scores, rows)
        outputs = []
        behind: Sequence | None = None  # left its drafts: the rows after them are of no use
        for i, (r, token) in enumerate(zip(ready, tokens, strict=True)):
            if r.sequence is behind:
                continue
            top = r.request.params.recorded
            logprob = None
            if top is not None and token != NOTHING:
                logprob = record_logprob(raw[i], token, top=top)
            outputs.append(self._accept(r, token, logprob))
            if token != r.draft or outputs[-1].finish_reason is not None:
                behind = r.sequence
        return outputs if all(r.request.params.streams for r in ready) else _ranked(ready, outputs)

    def _branch(self, ready: Seq[Ready]) -> list[Ready]:
        """After its prompt, a request goes on as ``width`` sequences over the same pages."""
        branches = []
        for r in ready:
            branches.append(r)
            if r.request.branched:
                continue
            r.request.branched = True
            params = r.request.params
            for index in range(1, params.width):
                sequence = Sequence(
                    tokens=list(r.sequence.tokens),
                    index=index,
                    table=self.pool.fork(r.sequence.table),
                    stream=TextStream.of(params, self.tokenizer),
                )
                r.request.sequences.append(sequence)
                branches.append(dataclasses.replace(r, sequence=sequence))
        return branches

    def _accept(self, ready: Ready, token: int, logprob: TokenLogprob | None) -> Output:
        """Append a token. Where none may come, the sequence ends."""
        if token == NOTHING:
            return announce(self.pool, ready.request, ready.sequence, dry=True)
        ready.sequence.tokens.append(token)
        output = announce(self.pool, ready.request, ready.sequence, logprob=logprob)
        if token == ready.draft:
            self.drafts.accepted += 1
            if output.finish_reason is None:
                self.pool.advance(ready.sequence.table, 1)
        return output


def announce(
    pool: KVPool,
    request: Request,
    sequence: Sequence,
    *,
    logprob: TokenLogprob | None = None,
    dry: bool = False,
) -> Output:
    """What the newest token of a sequence shows; ``dry``: it has none, because none may come.

    If that was the end, its pages are freed and it leaves its request.

    Raises:
        RequestFailed: from what the tokenizer raises.
    """
    token = sequence.tokens[-1]
    ended = not dry and token in request.ends
    generated = len(sequence.tokens) - len(request.prompt)
    full = generated >= request.params.max_tokens
    first = generated - (not dry) == request.params.resume_tokens
    release = request.resumed if first else Release()
    reason: FinishReason | None = None
    try:
        if not dry:
            release += sequence.stream.push(token, extra=logprob, visible=not ended)
        over = dry or ended or full or sequence.stream.stopped
        if over:
            release = release + sequence.stream.finish()
    except Exception as e:
        raise RequestFailed(request.id) from e
    if over:
        rest: FinishReason = "exhausted" if dry else "length"
        reason = "stop" if ended or sequence.stream.stopped else rest
        pool.release(sequence.table)
        request.sequences.remove(sequence)
    return Output(
        request_id=request.id,
        index=sequence.index,
        token_ids=release.token_ids,
        text=release.text,
        logprobs=tuple(x for x in release.extras if x is not None),
        finish_reason=reason,
        stop_reason=stop_reason(request, token, sequence.stream) if reason == "stop" else None,
    )


def stop_reason(request: Request, last: int, stream: TextStream) -> str | int | None:
    """Which stop string or id of ``stop_token_ids`` has ended a text; None: another end."""
    if stream.stopped:
        return stream.stopped_by
    return last if last in request.params.stop_token_ids else None


def _ranked(ready: Seq[Ready], outputs: Seq[Output]) -> list[Output]:
    """``outputs`` but for those of requests that rank: these come once all sequences have ended."""
    requests = {r.request.id: r.request for r in ready}
    shown: list[Output] = []
    for output in outputs:
        request = requests[output.request_id]
        (shown if request.params.streams else request.held).append(output)
    for request in requests.values():
        if request.held and not request.sequences:
            params = request.params
            shown += best_of(request.held, params.n, logprobs=params.logprobs is not None)
    return shown
