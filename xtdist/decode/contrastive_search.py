"""Contrastive search: of the likely next tokens, the one whose hidden state is least like those
before it (https://arxiv.org/abs/2202.06417)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xtdist.decode.outputs import TokenLogprob


@dataclass(frozen=True)
class Candidate:
    """A token that may come next, with its probability under the model."""

    token: int
    probability: float
    logprob: TokenLogprob | None = None


@dataclass(eq=False)
class Search:
    """The bookkeeping of one request. ``states``: last-layer hidden states of the tokens before the
    candidates, the prompt's too, each divided by its length."""

    penalty_alpha: float
    candidates: list[Candidate] = field(default_factory=list)
    states: Float[Tensor, "t d"] | None = None

    def see(self, start: int, hidden: Float[Tensor, "n d"]) -> None:
        """Hidden states of the tokens from ``start`` on, as long as there are no candidates."""
        if self.candidates:
            return
        new = _unit(hidden)
        self.states = new if self.states is None else torch.cat((self.states[:start], new))

    def best(self, hidden: Sequence[Float[Tensor, " d"]]) -> int:
        """The number of the candidate with the best score, given the hidden state of each:

        (1 - penalty_alpha) * probability - penalty_alpha * largest cosine with a state before it
        """
        assert self.states is not None
        likeness = (_unit(torch.stack(list(hidden))) @ self.states.T).amax(-1)
        probabilities = likeness.new_tensor([c.probability for c in self.candidates])
        scores = (1 - self.penalty_alpha) * probabilities - self.penalty_alpha * likeness
        return int(scores.argmax())

    def choose(self, hidden: Float[Tensor, " d"]) -> None:
        """A candidate with this hidden state goes on; the others are gone."""
        self.candidates = []
        assert self.states is not None
        self.see(len(self.states), hidden[None])

    def forget(self) -> None:
        """Back to the tokens that are certain, with nothing computed."""
        self.candidates, self.states = [], None


def _unit(hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return F.normalize(hidden.float(), dim=-1)
