"""Speculative decoding: the first amateur drafts, the expert checks all drafts in one pass.

Both draw with the same stages and the same noise (a function of seed, position and token): a draft
is accepted as long as the expert, given the drafts before it, draws the same token by itself; the
first other one is taken instead. So the output is the expert's own, token by token, whatever the
amateur says. (Speculative sampling, 2211.17192, rejects at random and keeps the distribution only.)
Contrast with the drafting amateur costs no further pass (2311.08981).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from xtdist.decode.kv_cache import PageTable
from xtdist.decode.penalties import adjust
from xtdist.decode.request import Sequence
from xtdist.decode.runner import Runner
from xtdist.decode.sampling import NOTHING, Sampler
from xtdist.decode.scheduler import Work


@dataclass
class DraftCount:
    """Tokens that were drafted since the engine began, and how many of them the expert took."""

    drafted: int = 0
    accepted: int = 0


@dataclass
class _Line:
    """A sequence with its drafts so far, and the amateur's logits after each of them."""

    work: Work
    rows: list[Float[Tensor, " v"]]
    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    def wants(self, drafts: int) -> bool:
        return not self.ended and self.work.drafted > drafts


@dataclass
class Drafter:
    """Runs the first amateur over a step, and on where drafts are wanted.

    It runs once more than it drafts: its cache then holds the last draft too, and its logits stand
    beside each of the expert's rows. ``banned`` ids are never drafted.
    """

    runner: Runner
    banned: Tensor | None
    count: DraftCount
    _sampler: Sampler | None = field(default=None, repr=False)

    def run(self, work: Seq[Work]) -> tuple[Float[Tensor, "r v"], list[tuple[int, ...]]]:
        """Its logits after the last known token and after each draft of every work that completes,
        and the drafts of each work.

        An end is not drafted, nor anything behind it: the expert finds it by itself.
        """
        first = self.runner.run([replace(w, drafted=0) for w in work]).logits
        most = max(w.drafted for w in work)
        if not most:
            return first, [()] * len(work)
        completing = [w for w in work if w.completes]
        lines = [_Line(w, [row]) for w, row in zip(completing, first, strict=True)]
        for drafts in range(most):
            live = [line for line in lines if line.wants(drafts)]
            if live:
                self._extend(live)
        rows = torch.stack([row for line in lines for row in line.rows])
        found = {id(line.work): tuple(line.tokens) for line in lines}
        self.count.drafted += sum(map(len, found.values()))
        return rows, [found.get(id(w), ()) for w in work]

    def _extend(self, lines: Seq[_Line]) -> None:
        """One draft more for each."""
        scores = torch.stack([line.rows[-1] for line in lines])
        rows = [line.work.request.row(line.work.sequence, line.tokens) for line in lines]
        adjust(scores, rows, self.banned)
        if self._sampler is None or not self._sampler.fits(rows):
            self._sampler = Sampler([row.params for row in rows], scores.device)
        for line, token in zip(lines, self._sampler.draw(scores, rows), strict=True):
            line.ended = token == NOTHING or token in line.work.request.ends
            if not line.ended:
                line.tokens.append(token)
        live = [line for line in lines if not line.ended]
        if not live:
            return
        logits = self.runner.run([_last_draft(line) for line in live]).logits
        for line, row in zip(live, logits, strict=True):
            line.rows.append(row)


def guessed(work: Work, drafts: tuple[int, ...]) -> Work:
    """``work`` with its drafts, maybe fewer than were wanted, as if they were known."""
    if not drafts:
        return replace(work, drafted=0) if work.drafted else work
    sequence = Sequence(tokens=[*work.sequence.tokens, *drafts], table=work.sequence.table)
    count = work.count + len(drafts)
    return replace(work, sequence=sequence, count=count, drafted=len(drafts))


def _last_draft(line: _Line) -> Work:
    """The last draft alone, behind what this amateur has computed in this step. The pages are
    reserved, the table itself stays."""
    tokens, table = [*line.work.sequence.tokens, *line.tokens], line.work.sequence.table
    ahead = PageTable(pages=table.pages, length=len(tokens) - 1, dropped=table.dropped)
    return Work(line.work.request, Sequence(tokens=tokens, table=ahead), 1)
