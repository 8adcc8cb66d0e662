"""One step through all models: the expert and the amateurs that a request reads, over the same
tokens and the same pages."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from xtdist.decode.contrastive import contrast, tempered
from xtdist.decode.dola import against_exits
from xtdist.decode.kv_cache import KVPool
from xtdist.decode.request import Request, Sequence
from xtdist.decode.runner import Hidden, Rows, Runner
from xtdist.decode.sampling import Row
from xtdist.decode.scheduler import Work
from xtdist.decode.speculative import Drafter, guessed


@dataclass(frozen=True)
class Ready:
    """A place where a sequence can go on, with its row in the logits of each model.

    Drafting gives one sequence several: ``ahead`` are the drafts before this one, ``draft`` is the
    one that follows, None after the last. ``hidden``: of the last token, where it was asked for.
    """

    request: Request
    sequence: Sequence
    row: int
    amateur_rows: tuple[int, ...] = ()
    ahead: tuple[int, ...] = ()
    draft: int | None = None
    hidden: Float[Tensor, " d"] | None = None

    @property
    def state(self) -> Row:
        """What the sampler must know of it."""
        return self.request.row(self.sequence, self.ahead)


@dataclass(frozen=True)
class StepLogits:
    """The logits of a step: of the expert for all that is ready, of each amateur for some, and of
    early exits from the expert by the number of the layer."""

    expert: Float[Tensor, "r v"]
    amateurs: tuple[Float[Tensor, "_a v"] | None, ...] = ()
    exits: Mapping[int, Float[Tensor, "r v"]] = field(default_factory=dict)

    def experts(self, ready: Seq[Ready]) -> Float[Tensor, "r v"]:
        """To be overwritten: the rows are of no further use to others."""
        rows = [r.row for r in ready]
        return self.expert if rows == list(range(len(self.expert))) else self.expert[rows]

    def contrast(
        self, scores: Float[Tensor, "r v"], ready: Seq[Ready], *, logprobs: bool = False
    ) -> None:
        """Contrast the expert's scores with amateurs or early exits where requests ask for it, in
        place. ``logprobs``: the scores are log-probabilities, so the amateurs' shall be."""
        groups: dict[int, list[int]] = {}
        for i, r in enumerate(ready):
            if r.request.params.contrasts or r.request.exits:
                groups.setdefault(id(r.request.params), []).append(i)
        for indices in groups.values():
            chosen = [ready[i] for i in indices]
            request, own = chosen[0].request, scores[indices]
            if request.exits:
                rows = [r.row for r in chosen]
                own = against_exits(own, [self.exits[n][rows] for n in request.exits])
            for number, params in enumerate(request.params.contrasts):
                weaker = tempered(self._amateur(number, chosen), params)
                own = contrast(own, weaker.log_softmax(-1) if logprobs else weaker, params)
            scores[indices] = own

    def _amateur(self, number: int, ready: Seq[Ready]) -> Float[Tensor, "r v"]:
        logits = self.amateurs[number]
        assert logits is not None, "a contrastive request was run without its amateur"
        return logits[[r.amateur_rows[number] for r in ready]]


@dataclass
class Lockstep:
    """The models of an engine. ``drafter`` runs the first amateur."""

    pool: KVPool
    expert: Runner
    amateurs: tuple[Runner, ...] = ()
    drafter: Drafter | None = None

    def run(self, work: Seq[Work]) -> tuple[list[Ready], StepLogits]:
        """All models over the step's tokens; what can go on now, with its logits.

        Known tokens are cached afterwards. Drafts are computed but not yet counted: whoever accepts
        one moves the table on.
        """
        weaker: list[Tensor | None] = []
        drafts: list[tuple[int, ...]] = [()] * len(work)
        for number, runner in enumerate(self.amateurs):
            read = [i for i, w in enumerate(work) if w.request.params.amateurs > number]
            logits = None
            if read and number == 0:
                assert self.drafter is not None
                logits, found = self.drafter.run([work[i] for i in read])
                for i, tokens in zip(read, found, strict=True):
                    drafts[i] = tokens
            elif read:
                logits = runner.run([guessed(work[i], drafts[i]) for i in read]).logits
            weaker.append(logits)
        expert = self.expert.run(
            [guessed(w, tokens) for w, tokens in zip(work, drafts, strict=True)],
            hidden=any(w.request.reads_states for w in work),
            exits=tuple(sorted({n for w in work for n in w.request.exits})),
        )
        ready = self._ready(work, drafts, expert)
        for w in work:
            self.pool.advance(
                w.sequence.table, w.count, tokens=w.sequence.tokens, root=w.request.root
            )
        return ready, StepLogits(expert.logits, tuple(weaker), expert.exits)

    def _ready(self, work: Seq[Work], drafts: Seq[tuple[int, ...]], expert: Rows) -> list[Ready]:
        ready: list[Ready] = []
        behind = [0] * len(self.amateurs)
        for i, (w, tokens) in enumerate(zip(work, drafts, strict=True)):
            states = expert.hidden[i] if expert.hidden else None
            if states is not None:
                self._show(w.request, states)
            if not w.completes:
                continue
            read = w.request.params.amateurs
            first = Ready(
                w.request,
                w.sequence,
                row=len(ready),
                amateur_rows=tuple(behind[:read]),
                hidden=None if states is None else states.rows[-1],
            )
            ready += _places(first, tokens)
            for number in range(read):
                behind[number] += 1 + len(tokens)
        return ready

    def _show(self, request: Request, states: Hidden) -> None:
        """Hidden states to those who want them."""
        if request.search is not None:
            request.search.see(*states)
        if request.scores is not None:
            request.scores.see(*states, self.expert.to_logits)


def _places(first: Ready, drafts: tuple[int, ...]) -> list[Ready]:
    """``first``, and one more after each draft."""
    return [
        replace(
            first,
            row=first.row + i,
            amateur_rows=tuple(row + i for row in first.amateur_rows),
            ahead=drafts[:i],
            draft=drafts[i] if i < len(drafts) else None,
        )
        for i in range(len(drafts) + 1)
    ]
