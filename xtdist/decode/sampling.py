"""From logits to tokens, one row per sequence, each row with its own parameters.

Parameters become one tensor per stage; a stage that no row uses costs nothing. Order: bans,
``min_tokens``, ``logit_bias``; repetition, presence, frequency penalty; contrast; temperature;
top-k; top-p; min-p; noise. Shapes: r rows, v vocabulary, k best candidates of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xtdist.decode.noise import gumbel, noise_key
from xtdist.decode.outputs import TokenLogprob
from xtdist.decode.params import GenerationParams

PREFILTER = 256


@dataclass(frozen=True)
class Row:
    """What the sampler must know of one sequence. ``ends`` are the ids that end it."""

    params: GenerationParams
    seed: int
    tokens: Sequence[int]
    prompt_tokens: int
    ends: tuple[int, ...] = ()

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def adjusts(self) -> bool:
        """Whether any stage of ``adjust`` applies to it now."""
        p = self.params
        return bool(
            self.generated < p.min_tokens
            or p.logit_bias
            or p.repetition_penalty != 1.0
            or p.presence_penalty
            or p.frequency_penalty
        )


def adjust(scores: Float[Tensor, "r v"], rows: Sequence[Row], banned: Tensor | None) -> None:
    """Bans, ``min_tokens``, bias and penalties, in place, on logits or log-probabilities."""
    if banned is not None:
        scores.index_fill_(1, banned, -math.inf)
    for i, row in enumerate(rows):
        if not row.adjusts:
            continue
        score, params = scores[i], row.params
        if row.ends and row.generated < params.min_tokens:
            score[list(row.ends)] = -math.inf
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=score.device)
            score[ids] += torch.tensor(list(params.logit_bias.values()), device=score.device)
        if params.repetition_penalty != 1.0:
            _penalise_repetition(score, row)
        if params.presence_penalty or params.frequency_penalty:
            _penalise_presence(score, row)


def _penalise_repetition(score: Float[Tensor, " v"], row: Row) -> None:
    """Tokens of prompt and output: divide positive scores, multiply negative ones."""
    seen = torch.tensor(sorted(set(row.tokens)), device=score.device)
    old, penalty = score[seen], row.params.repetition_penalty
    score[seen] = torch.where(old > 0, old / penalty, old * penalty)


def _penalise_presence(score: Float[Tensor, " v"], row: Row) -> None:
    """Tokens of the output: subtract once, and once per occurrence."""
    if not row.generated:
        return
    output = torch.tensor(row.tokens[row.prompt_tokens :], device=score.device)
    seen, counts = output.unique(return_counts=True)
    score[seen] -= row.params.presence_penalty + row.params.frequency_penalty * counts


class Sampler:
    """The stages after the penalties for a fixed list of parameters (one step's rows, in order).

    Building it costs a few tensors, so the engine keeps it while the rows stay the same.
    """

    def __init__(self, params: Sequence[GenerationParams], device: torch.device) -> None:
        self.device = device
        self.params = list(params)
        drawn = [i for i, p in enumerate(params) if not p.greedy]
        filtered = [i for i in drawn if params[i].top_k > 0 or params[i].top_p < 1.0]
        plain = sorted(set(drawn) - set(filtered))
        self.any_drawn = bool(drawn)
        self.plain = _Stage(plain, self.params, device) if plain else None
        self.filtered = _Stage(filtered, self.params, device) if filtered else None

    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether it was built for the parameters of exactly these rows."""
        same = len(rows) == len(self.params)
        return same and all(r.params is p for r, p in zip(rows, self.params, strict=True))

    def draw(self, logits: Float[Tensor, "r v"], rows: Sequence[Row]) -> list[int]:
        """One token id per row."""
        if not self.any_drawn:
            return logits.argmax(dim=-1).tolist()
        whole = any(
            stage is not None and len(stage.indices) == len(rows)
            for stage in (self.plain, self.filtered)
        )
        tokens = [0] * len(rows) if whole else logits.argmax(dim=-1).tolist()
        for stage in (self.plain, self.filtered):
            if stage is None:
                continue
            keys = [noise_key(rows[i].seed, len(rows[i].tokens)) for i in stage.indices]
            own = logits if len(stage.indices) == len(rows) else logits[stage.indices]
            drawn = stage.draw(own, torch.tensor(keys, dtype=torch.int32, device=self.device))
            for i, token in zip(stage.indices, drawn.tolist(), strict=True):
                tokens[i] = token
        return tokens


class _Stage:
    """Rows that take the same path: all of the vocabulary, or its best candidates only."""

    def __init__(
        self, indices: list[int], params: Sequence[GenerationParams], device: torch.device
    ) -> None:
        own = [params[i] for i in indices]
        self.indices = indices
        self.filters = any(p.top_k > 0 or p.top_p < 1.0 for p in own)
        self.exact_k = all(p.top_k > 0 for p in own)
        self.most = max(p.top_k for p in own)

        def column(values: list[float], off: float) -> Tensor | None:
            if all(x == off for x in values):
                return None
            return torch.tensor(values, device=device)[:, None]

        self.temperature = column([p.temperature for p in own], 1.0)
        self.top_k = column([p.top_k or math.inf for p in own], math.inf)
        self.top_p = column([p.top_p for p in own], 1.0)
        self.min_p = column([math.log(p.min_p) if p.min_p else -math.inf for p in own], -math.inf)

    def draw(self, logits: Float[Tensor, "r v"], keys: Int[Tensor, "r 2"]) -> Int[Tensor, " r"]:
        if self.temperature is not None:
            logits = logits / self.temperature
        if not self.filters:
            best = logits.amax(dim=-1, keepdim=True) if self.min_p is not None else None
            kept = self._above_min_p(logits, best)
            ids = torch.arange(logits.shape[-1], dtype=torch.int32, device=logits.device)[None]
            return (kept + gumbel(keys, ids)).argmax(dim=-1)
        candidates, ids = self._candidates(logits)
        kept = self._above_min_p(self._filter(candidates, logits), candidates[:, :1])
        choice = (kept + gumbel(keys, ids)).argmax(dim=-1, keepdim=True)
        return ids.gather(1, choice)[:, 0]

    def _candidates(
        self, logits: Float[Tensor, "r v"]
    ) -> tuple[Float[Tensor, "r k"], Int[Tensor, "r k"]]:
        """Sorted best logits and their ids; as few as surely hold all that the filters keep."""
        vocabulary = logits.shape[-1]
        k = self.most if self.exact_k else max(self.most, PREFILTER)
        if k < vocabulary:
            values, ids = logits.topk(k, dim=-1)
            if self.exact_k or self._reaches_top_p(values, logits):
                return values, ids
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return values, ids

    def _reaches_top_p(self, values: Float[Tensor, "r k"], logits: Float[Tensor, "r v"]) -> bool:
        """Whether in every row without top-k the candidates hold at least ``top_p`` of the mass."""
        if self.top_p is None:
            return False
        mass = (values.logsumexp(-1) - logits.logsumexp(-1)).exp()[:, None]
        enough = mass >= self.top_p
        if self.top_k is not None:
            enough |= self.top_k.isfinite()
        return bool(enough.all())

    def _filter(
        self, values: Float[Tensor, "r k"], logits: Float[Tensor, "r v"]
    ) -> Float[Tensor, "r k"]:
        """top-k, then top-p of what top-k left: the smallest prefix with at least that mass."""
        total = None
        if self.top_k is not None:
            rank = torch.arange(values.shape[-1], device=values.device)
            limited = values.masked_fill(rank >= self.top_k, -math.inf)
            total = limited.logsumexp(-1, keepdim=True)
            if not self.exact_k:
                free = self.top_k.isinf()
                total = torch.where(free, logits.logsumexp(-1, keepdim=True), total)
            values = limited
        if self.top_p is None:
            return values
        if total is None:
            total = logits.logsumexp(-1, keepdim=True)
        probabilities = (values - total).exp()
        before = probabilities.cumsum(-1) - probabilities
        return values.masked_fill((before >= self.top_p) & (self.top_p < 1.0), -math.inf)

    def _above_min_p(self, kept: Tensor, best: Tensor | None) -> Tensor:
        if self.min_p is None or best is None:
            return kept
        return kept.masked_fill(kept < best + self.min_p, -math.inf)


def record_logprob(raw: Float[Tensor, " v"], chosen: int, *, top: int) -> TokenLogprob:
    """Log-probability of ``chosen`` under one row of raw logits, and the ``top`` best."""
    logprobs = raw.float().log_softmax(-1)
    values, ids = logprobs.topk(min(top, raw.shape[-1]))
    best = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(chosen, float(logprobs[chosen]), best)
