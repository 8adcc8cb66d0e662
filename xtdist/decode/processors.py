"""A hook for everything that decides about the next token from the tokens before it: grammars, a
caller's own filter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST_SCORE = 1e30


class LogitsProcessor(Protocol):
    """A pure function of the tokens that one continuation has generated: choices and beams share
    it, and a step may be asked for again. It may keep what it computed."""

    def __call__(
        self, tokens: Sequence[int], scores: Float[Tensor, " v"], /
    ) -> Float[Tensor, " v"]:
        """The scores to go on with; -inf forbids a token. ``scores`` may be overwritten. Where
        everything is forbidden, the continuation ends."""
        ...


class Allowed:
    """Forbids all but some ids."""

    def __init__(self, ids: Sequence[int], device: torch.device) -> None:
        self._ids = torch.tensor(sorted(set(ids)), device=device)

    def __call__(
        self, tokens: Sequence[int], scores: Float[Tensor, " v"], /
    ) -> Float[Tensor, " v"]:
        return torch.full_like(scores, -math.inf).index_copy(0, self._ids, scores[self._ids])


def processed(
    scores: Float[Tensor, " v"], tokens: Sequence[int], processors: Sequence[LogitsProcessor]
) -> Float[Tensor, " v"]:
    """One row after all ``processors``, in order. What was forbidden stays so; nan forbids; what
    is larger than any penalty and temperature leave finite is lowered to that.

    Raises:
        ValueError: a processor gives a row of another shape.
    """
    for processor in processors:
        made = processor(tokens, scores.clone())
        if made.shape != scores.shape:
            raise ValueError(
                f"processor: it made {tuple(made.shape)} of scores {tuple(scores.shape)}; "
                "it must keep the shape"
            )
        forbidden = scores.isneginf() | made.isnan()
        scores = made.float().clamp(max=LARGEST_SCORE).masked_fill(forbidden, -math.inf)
    return scores
