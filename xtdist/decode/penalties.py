"""What is forbidden, favoured or disfavoured before anything is drawn, in place on rows of scores:
bans, hooks, ``min_tokens``, ``bad_words``, ``logit_bias``; repetition, presence, frequency.

Each stage is one operation on (row, token) pairs of all rows that use it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from xtdist.decode.outputs import RequestFailed
from xtdist.decode.processors import processed
from xtdist.decode.sampling import Row, not_numbers

Pairs = Iterable[tuple[int, int, float]]
"""(row, token id, amount)"""


def adjust(scores: Float[Tensor, "r v"], rows: Sequence[Row], banned: Tensor | None) -> None:
    """All stages, in place, on logits or log-probabilities. ``banned``: ids of no row.

    A row may end up without any candidate: all -inf.

    Raises:
        RequestFailed: from what a processor of a row raises.
    """
    if banned is not None:
        scores.index_fill_(1, banned, -math.inf)
    active = [(i, row) for i, row in enumerate(rows) if row.adjusts]
    if not active:
        return
    for i, row in active:
        if row.processors:
            scores[i] = _processed(scores[i], row)
    _add(scores, ((i, token, -math.inf) for i, row in active for token in _forbidden(row)))
    _add(scores, ((i, *pair) for i, row in active for pair in row.params.logit_bias.items()))
    _penalise_repetition(scores, active)
    _add(scores, ((i, *pair) for i, row in active for pair in _presence(row)))


def _processed(scores: Float[Tensor, " v"], row: Row) -> Float[Tensor, " v"]:
    if bool(scores.isnan().any()):
        raise not_numbers(row.request_id)
    try:
        return processed(scores, row.tokens[row.prompt_tokens :], row.processors)
    except Exception as e:
        raise RequestFailed(row.request_id) from e


def _forbidden(row: Row) -> set[int]:
    """Ends that come too early, and the last tokens of bad words."""
    early = row.ends if row.generated < row.params.min_tokens else ()
    singles, longer = row.params.bad_word_table
    tokens, last = row.tokens, row.tokens[-1]
    ending = [
        token
        for prefix, token in longer.get(last, ())
        if len(prefix) <= len(tokens) and tuple(tokens[len(tokens) - len(prefix) :]) == prefix
    ]
    return {*early, *singles, *ending}


def _presence(row: Row) -> list[tuple[int, float]]:
    """Tokens of the output: subtract once, and once per occurrence."""
    params = row.params
    if not (params.presence_penalty or params.frequency_penalty):
        return []
    counts = Counter(row.tokens[row.prompt_tokens :])
    once, each = params.presence_penalty, params.frequency_penalty
    return [(token, -(once + each * count)) for token, count in counts.items()]


def _penalise_repetition(scores: Float[Tensor, "r v"], active: Sequence[tuple[int, Row]]) -> None:
    """Tokens of prompt and output: divide positive scores, multiply negative ones."""
    factors = [(i, row, row.params.repetition_penalty) for i, row in active]
    pairs = [(i, token, f) for i, row, f in factors if f != 1.0 for token in set(row.tokens)]
    if not pairs:
        return
    where, penalty = _indices(pairs, scores)
    old = scores[where]
    scores[where] = torch.where(old > 0, old / penalty, old * penalty)


def _add(scores: Float[Tensor, "r v"], pairs: Pairs) -> None:
    """Add amounts to the scores; no pair may come twice."""
    found = list(pairs)
    if found:
        where, amounts = _indices(found, scores)
        scores[where] += amounts


def _indices(
    pairs: Sequence[tuple[int, int, float]], scores: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    rows, tokens, amounts = zip(*pairs, strict=True)
    where = torch.tensor([rows, tokens], device=scores.device)
    return (where[0], where[1]), torch.tensor(amounts, dtype=scores.dtype, device=scores.device)
