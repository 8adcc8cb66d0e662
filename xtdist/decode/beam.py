"""Beam search with the semantics of transformers' ``generate``.

Of all continuations of the running beams, the best max(2, 1 + number of EOS ids) * width are
candidates. Those that end are accepted as finished only among the first ``width``; the best
``width`` that do not end run on. A finished score is the sum of log-probabilities divided by
generated tokens (the EOS counts) ** ``length_penalty``. Ties go to the lower (beam, token).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

LARGEST_EXPONENT = 600.0


@dataclass(frozen=True)
class Candidate:
    """Beam ``parent`` continued with ``token``; ``score`` is the sum of log-probabilities."""

    parent: int
    token: int
    score: float


@dataclass(frozen=True)
class Finished:
    """A hypothesis that ended: its generated tokens and its length-penalised score."""

    score: float
    tokens: tuple[int, ...]
    ended: bool


@dataclass
class BeamSearch:
    """The bookkeeping of one request. ``scores`` are those of the running beams, best first.

    ``early_stopping``: True stops at ``width`` finished; False when the best running beam at its
    present length can't beat the worst finished; "never" judges at the full length when a positive
    ``length_penalty`` favours long ones.
    """

    width: int
    max_tokens: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    end_ids: int = 0
    scores: list[float] = field(default_factory=lambda: [0.0])
    generated: int = 0
    finished: list[Finished] = field(default_factory=list)
    done: bool = False

    def advance(
        self,
        logprobs: Float[Tensor, "r v"],
        *,
        ends: Callable[[Candidate], bool],
        tokens_of: Callable[[Candidate], tuple[int, ...]],
    ) -> list[Candidate]:
        """One step for all running beams; returns the beams that run on, best first.

        ``ends`` says whether a candidate's last token ends it; ``tokens_of`` gives all generated
        tokens of a candidate.
        """
        candidates = self._candidates(logprobs)
        self.generated += 1
        at_limit = self.generated >= self.max_tokens
        ended = [ends(c) for c in candidates]
        running = [c for c, e in zip(candidates, ended, strict=True) if not (e or at_limit)]
        running = running[: self.width]
        for c, e in list(zip(candidates, ended, strict=True))[: self.width]:
            if e or at_limit:
                self.finished.append(Finished(self._penalised(c.score), tokens_of(c), e))
        self.finished.sort(key=lambda f: -f.score)
        del self.finished[self.width :]
        self.scores = [c.score for c in running]
        self.done = not running or self._satisfied()
        return running

    def _candidates(self, logprobs: Float[Tensor, "r v"]) -> list[Candidate]:
        vocabulary = logprobs.shape[-1]
        totals = (logprobs + logprobs.new_tensor(self.scores)[:, None]).flatten()
        keep = min(max(2, 1 + self.end_ids) * self.width, totals.numel())
        values, flat = totals.topk(keep)
        found = [
            (-score, index)
            for score, index in zip(values.tolist(), flat.tolist(), strict=True)
            if score > float("-inf")
        ]
        return [
            Candidate(i // vocabulary, i % vocabulary, -negative) for negative, i in sorted(found)
        ]

    def _satisfied(self) -> bool:
        """Whether no running beam is worth continuing."""
        if len(self.finished) < self.width:
            return False
        if self.early_stopping is True:
            return True
        longest = self.early_stopping == "never" and self.length_penalty > 0
        length = self.max_tokens if longest else self.generated
        return self.scores[0] / self._divisor(length) <= self.finished[-1].score

    def _penalised(self, score: float) -> float:
        return score / self._divisor(self.generated)

    def _divisor(self, length: int) -> float:
        """length ** length_penalty, kept where it and the scores divided by it are finite."""
        if abs(self.length_penalty) * math.log(length) > LARGEST_EXPONENT:
            return math.exp(math.copysign(LARGEST_EXPONENT, self.length_penalty))
        return float(length**self.length_penalty)
