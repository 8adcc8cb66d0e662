"""From the logits of a step to the next token of every sequence that is sampled or greedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from xtdist.decode.contrastive import contrast, tempered
from xtdist.decode.kv_cache import KVPool
from xtdist.decode.outputs import FinishReason, Output, TokenLogprob
from xtdist.decode.params import ContrastiveParams
from xtdist.decode.penalties import adjust
from xtdist.decode.request import Request, Sequence
from xtdist.decode.sampling import Sampler, record_logprob
from xtdist.decode.stopping import TextStream, Tokenizer


@dataclass(frozen=True)
class Ready:
    """A sequence that can go on, with its row in the expert's logits and in the amateur's."""

    request: Request
    sequence: Sequence
    row: int
    amateur_row: int = -1


@dataclass(frozen=True)
class StepLogits:
    """The logits of a step: of the expert for all ready sequences, of the amateur for some."""

    expert: Float[Tensor, "r v"]
    amateur: Float[Tensor, "a v"] | None = None

    def experts(self, ready: Seq[Ready]) -> Float[Tensor, "r v"]:
        rows = [r.row for r in ready]
        return self.expert if rows == list(range(len(self.expert))) else self.expert[rows]

    def amateurs(self, ready: Seq[Ready]) -> Float[Tensor, "r v"]:
        assert self.amateur is not None, "a contrastive request was run without its amateur"
        return self.amateur[[r.amateur_row for r in ready]]


@dataclass
class Continuation:
    """Chooses tokens, ends sequences, and says what is new. ``banned`` ids are never chosen."""

    pool: KVPool
    tokenizer: Tokenizer | None
    banned: Tensor | None
    _sampler: Sampler | None = field(default=None, repr=False)

    def advance(self, ready: Seq[Ready], logits: StepLogits) -> list[Output]:
        """One token further for every ready sequence. A finished one leaves its request."""
        ready = self._branch(ready)
        rows = [r.request.row(r.sequence) for r in ready]
        scores = logits.experts(ready)
        logprobs = any(row.params.logprobs is not None for row in rows)
        raw = scores.clone() if logprobs else scores
        adjust(scores, rows, self.banned)
        self._contrast(scores, ready, logits)
        if self._sampler is None or not self._sampler.fits(rows):
            self._sampler = Sampler([row.params for row in rows], scores.device)
        tokens = self._sampler.draw(scores, rows)
        outputs = []
        for i, (r, token) in enumerate(zip(ready, tokens, strict=True)):
            top = r.request.params.logprobs
            logprob = None if top is None else record_logprob(raw[i], token, top=top)
            outputs.append(self._accept(r, token, logprob))
        return outputs

    def _branch(self, ready: Seq[Ready]) -> list[Ready]:
        """After its prompt, a request goes on as ``n`` sequences over the same pages."""
        branches = []
        for r in ready:
            branches.append(r)
            if r.request.branched:
                continue
            r.request.branched = True
            for index in range(1, r.request.params.n):
                sequence = Sequence(
                    tokens=list(r.sequence.tokens),
                    index=index,
                    table=self.pool.fork(r.sequence.table),
                    stream=TextStream(self.tokenizer, r.request.params.stop),
                )
                r.request.sequences.append(sequence)
                branches.append(dataclasses.replace(r, sequence=sequence))
        return branches

    def _contrast(
        self, scores: Float[Tensor, "r v"], ready: Seq[Ready], logits: StepLogits
    ) -> None:
        groups: dict[ContrastiveParams, list[int]] = {}
        for i, r in enumerate(ready):
            if r.request.params.contrastive is not None:
                groups.setdefault(r.request.params.contrastive, []).append(i)
        for params, indices in groups.items():
            amateur = tempered(logits.amateurs([ready[i] for i in indices]), params)
            scores[indices] = contrast(scores[indices], amateur, params)

    def _accept(self, ready: Ready, token: int, logprob: TokenLogprob | None) -> Output:
        """Append a token; say what may be shown, and whether this was the end."""
        request, sequence = ready.request, ready.sequence
        sequence.tokens.append(token)
        ended = token in request.ends
        release = sequence.stream.push(token, extra=logprob, visible=not ended)
        full = len(sequence.tokens) - len(request.prompt) >= request.params.max_tokens
        reason: FinishReason | None = None
        if ended or full or sequence.stream.stopped:
            release = release + sequence.stream.finish()
            reason = "stop" if ended or sequence.stream.stopped else "length"
            self.pool.release(sequence.table)
            request.sequences.remove(sequence)
        return Output(
            request_id=request.id,
            index=sequence.index,
            token_ids=release.token_ids,
            text=release.text,
            logprobs=tuple(x for x in release.extras if x is not None),
            finish_reason=reason,
        )
