"""Stochastic beam search: a sample of sequences without replacement
(https://arxiv.org/abs/1903.06059).

The log-probability of every sequence gets Gumbel noise, and the ``width`` largest sums are the
sample. From the top down: the noise of a beam's children is drawn under the condition that their
largest sum is the beam's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from xtdist.decode.beam import Candidate, Finished
from xtdist.decode.noise import gumbel, noise_key


@dataclass
class StochasticBeams:
    """The bookkeeping of one request, used like ``BeamSearch``.

    ``finished`` are the drawn sequences in the order of the draw: the first ``n`` are a sample of
    ``n``. Their score is their log-probability. Sequences that ended stay in the race, and the
    search goes on until all that are in it have ended.
    """

    width: int
    max_tokens: int
    seed: int
    scores: list[float] = field(default_factory=lambda: [0.0])
    sums: list[float] = field(default_factory=lambda: [0.0])
    generated: int = 0
    done: bool = False
    _ended: list[tuple[float, Finished]] = field(default_factory=list)

    @property
    def finished(self) -> list[Finished]:
        return [hypothesis for _, hypothesis in self._ended]

    def advance(
        self,
        logprobs: Float[Tensor, "r v"],
        *,
        ends: Callable[[Candidate], bool],
        tokens_of: Callable[[Candidate], tuple[int, ...]],
    ) -> list[Candidate]:
        """One step for all running beams, whose next token has ``logprobs``; returns the beams that
        run on, largest sum first. ``ends`` and ``tokens_of`` as for ``BeamSearch``."""
        children = self._children(logprobs)
        self.generated += 1
        race: list[tuple[float, Finished | Candidate]] = [*self._ended, *children]
        race.sort(key=lambda entry: -entry[0])
        self._ended, running, sums = [], [], []
        for total, entry in race[: self.width]:
            if isinstance(entry, Finished):
                self._ended.append((total, entry))
            elif (ended := ends(entry)) or self.generated >= self.max_tokens:
                self._ended.append((total, Finished(entry.score, tokens_of(entry), ended)))
            else:
                running.append(entry)
                sums.append(total)
        self.scores, self.sums = [c.score for c in running], sums
        self.done = not running
        return running

    def _children(self, logprobs: Float[Tensor, "r v"]) -> list[tuple[float, Candidate]]:
        """The best ``width`` continuations with their sums; none that has probability 0."""
        vocabulary, device = logprobs.shape[-1], logprobs.device
        scores = torch.tensor(self.scores, dtype=torch.float64, device=device)
        totals = logprobs + scores[:, None]
        keys = [noise_key(self.seed, "beam", self.generated, i) for i in range(len(self.scores))]
        ids = torch.arange(vocabulary, dtype=torch.int32, device=device)[None]
        noise = gumbel(torch.tensor(keys, dtype=torch.int32, device=device), ids)
        limits = torch.tensor(self.sums, dtype=torch.float64, device=device)
        perturbed = with_maximum(totals + noise, limits[:, None]).flatten()
        values, flat = perturbed.topk(min(self.width, perturbed.numel()))
        chosen = totals.flatten()[flat]
        return [
            (value, Candidate(i // vocabulary, i % vocabulary, score))
            for value, i, score in zip(values.tolist(), flat.tolist(), chosen.tolist(), strict=True)
            if value > -math.inf
        ]


def with_maximum(sums: Float[Tensor, "r v"], maximum: Float[Tensor, "r 1"]) -> Float[Tensor, "r v"]:
    """Gumbel variables as if they had been drawn with that ``maximum`` of each row (appendix B.3 of
    the paper); their order stays. Rows of -inf stay so."""
    best = sums.amax(-1, keepdim=True)
    below = sums - best
    near = below > -math.log(2)
    log_rest = torch.where(near, (-below.expm1()).log(), (-below.exp()).log1p())
    v = maximum - sums + log_rest
    moved = maximum - v.clamp(min=0) - (-v.abs()).exp().log1p()
    return moved.masked_fill(sums.isneginf(), -math.inf)
