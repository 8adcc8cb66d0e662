"""From logits to tokens, one row per sequence, each row with its own parameters.

Parameters become one tensor per stage; a stage that no row uses costs nothing. Order: what
``penalties`` does; contrast; temperature; the ``filters`` top-k, top-p, min-p, top-a, typical;
noise. Shapes: r rows, v vocabulary, k best candidates of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xtdist.decode.filters import above_square, first_k, near_best, nucleus, typical
from xtdist.decode.noise import gumbel, noise_key
from xtdist.decode.outputs import RequestFailed, TokenLogprob
from xtdist.decode.params import GenerationParams
from xtdist.decode.processors import LogitsProcessor

PREFILTER = 256
NOTHING = -1


@dataclass(slots=True, eq=False)  # made for every sequence in every step
class Row:
    """What the sampler must know of one sequence. ``ends`` are the ids that end it, ``processors``
    the hooks of its request."""

    params: GenerationParams
    seed: int
    tokens: Sequence[int]
    prompt_tokens: int
    ends: tuple[int, ...] = ()
    processors: tuple[LogitsProcessor, ...] = ()
    request_id: str = ""

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def adjusts(self) -> bool:
        """Whether any stage of ``penalties.adjust`` applies to it now."""
        p = self.params
        return (
            p.adjusts
            or bool(self.processors)
            or len(self.tokens) < p.min_tokens + self.prompt_tokens
        )


class Sampler:
    """The stages after the penalties for a fixed list of parameters (one step's rows, in order).

    Building it costs a few tensors, so the engine keeps it while the rows stay the same.
    """

    def __init__(self, params: Sequence[GenerationParams], device: torch.device) -> None:
        self.device = device
        self.params = list(params)
        drawn = [i for i, p in enumerate(params) if not p.greedy]
        cut = [i for i in drawn if params[i].top_k > 0 or params[i].top_p < 1.0]
        plain = sorted(set(drawn) - set(cut))
        self.stages = [_Stage(rows, self.params, device) for rows in (plain, cut) if rows]

    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether it was built for the parameters of exactly these rows."""
        same = len(rows) == len(self.params)
        return same and all(r.params is p for r, p in zip(rows, self.params, strict=True))

    def draw(self, logits: Float[Tensor, "r v"], rows: Sequence[Row]) -> list[int]:
        """One token id per row; ``NOTHING`` where there is no candidate.

        Raises:
            RequestFailed: the scores of a row are nan.
        """
        best, tokens = self._draw(logits, rows)
        for i, score in enumerate(best):
            if not score > -math.inf:
                if math.isnan(score):
                    raise not_numbers(rows[i].request_id)
                tokens[i] = NOTHING
        return tokens

    def filtered(self, logits: Float[Tensor, "r v"]) -> Float[Tensor, "r v"]:
        """The logits whose softmax ``draw`` samples: -inf where a filter cut. Greedy rows stay."""
        out = logits.clone()
        for stage in self.stages:
            values, ids = stage.kept(logits[stage.indices])
            if ids is not None:
                values = torch.full_like(out[stage.indices], -math.inf).scatter(1, ids, values)
            out[stage.indices] = values
        return out

    def _draw(
        self, logits: Float[Tensor, "r v"], rows: Sequence[Row]
    ) -> tuple[list[float], list[int]]:
        """The best score of each row, with its noise, and whose it is."""
        if any(len(stage.indices) == len(rows) for stage in self.stages):
            best, tokens = [0.0] * len(rows), [0] * len(rows)
        else:
            highest = logits.max(dim=-1)
            best, tokens = highest.values.tolist(), highest.indices.tolist()
        for stage in self.stages:
            keys = [noise_key(rows[i].seed, len(rows[i].tokens)) for i in stage.indices]
            own = logits if len(stage.indices) == len(rows) else logits[stage.indices]
            drawn = stage.draw(own, torch.tensor(keys, dtype=torch.int32, device=self.device))
            found = zip(stage.indices, *(x.tolist() for x in drawn), strict=True)
            for i, score, token in found:
                best[i], tokens[i] = score, token
        return best, tokens


class _Stage:
    """Rows that take the same path: all of the vocabulary, or its best candidates only."""

    def __init__(
        self, indices: list[int], params: Sequence[GenerationParams], device: torch.device
    ) -> None:
        own = [params[i] for i in indices]
        self.indices = indices
        self.cuts = any(p.top_k > 0 or p.top_p < 1.0 for p in own)
        self.exact_k = all(p.top_k > 0 for p in own)
        self.most = max(p.top_k for p in own)

        def column(values: list[float], off: float) -> Tensor | None:
            if all(x == off for x in values):
                return None
            return torch.tensor(values, device=device)[:, None]

        def log(x: float) -> float:
            return math.log(x) if x else -math.inf

        first = [1.0 if p.temperature_last else p.temperature for p in own]
        last = [p.temperature if p.temperature_last else 1.0 for p in own]
        self.temperature, self.temperature_last = column(first, 1.0), column(last, 1.0)
        self.top_k = column([p.top_k or math.inf for p in own], math.inf)
        self.top_p = column([p.top_p for p in own], 1.0)
        self.min_p = column([log(p.min_p) for p in own], -math.inf)
        self.top_a = column([log(p.top_a) for p in own], -math.inf)
        self.typical_p = column([p.typical_p for p in own], 1.0)

    def draw(
        self, logits: Float[Tensor, "r v"], keys: Int[Tensor, "r 2"]
    ) -> tuple[Float[Tensor, " r"], Int[Tensor, " r"]]:
        """The best score with noise, and its id."""
        values, ids = self.kept(logits)
        if ids is None:
            every = torch.arange(logits.shape[-1], dtype=torch.int32, device=logits.device)[None]
            best = (values + gumbel(keys, every)).max(dim=-1)
            return best.values, best.indices
        best = (values + gumbel(keys, ids)).max(dim=-1, keepdim=True)
        return best.values[:, 0], ids.gather(1, best.indices)[:, 0]

    def kept(
        self, logits: Float[Tensor, "r v"]
    ) -> tuple[Float[Tensor, "r k"], Int[Tensor, "r k"] | None]:
        """Tempered logits, -inf where a filter cut, and their ids; None: all of them in order."""
        if self.temperature is not None:
            logits = logits / self.temperature
        values, ids = logits, None
        if self.cuts:
            candidates, ids = self._candidates(logits)
            values = self._cut(candidates, logits)
        if self.min_p is not None:
            values = near_best(values, self.min_p)
        if self.top_a is not None:
            values = above_square(values, self.top_a)
        if self.typical_p is not None:
            values = typical(values, self.typical_p)
        if self.temperature_last is not None:
            values = values / self.temperature_last
        return values, ids

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

    def _cut(
        self, values: Float[Tensor, "r k"], logits: Float[Tensor, "r v"]
    ) -> Float[Tensor, "r k"]:
        """top-k, then top-p of what top-k left."""
        if self.top_k is not None:
            values = first_k(values, self.top_k)
        if self.top_p is None:
            return values
        total = (logits if self.top_k is None else values).logsumexp(-1, keepdim=True)
        if self.top_k is not None and not self.exact_k:
            everything = logits.logsumexp(-1, keepdim=True)
            total = torch.where(self.top_k.isinf(), everything, total)
        return nucleus(values, self.top_p, total=total)


def not_numbers(request_id: str) -> RequestFailed:
    """The failure of a request whose scores are nan."""
    failure = RequestFailed(request_id)
    failure.__cause__ = FloatingPointError(
        "logits: the model gives nan; look for nan or inf in its weights and in the context, or "
        "for overflow in its precision"
    )
    return failure


def record_logprob(raw: Float[Tensor, " v"], chosen: int, *, top: int) -> TokenLogprob:
    """Log-probability of ``chosen`` under one row of raw logits, and the ``top`` best."""
    logprobs = raw.float().log_softmax(-1)
    values, ids = logprobs.topk(min(top, raw.shape[-1]))
    best = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(chosen, float(logprobs[chosen]), best)
