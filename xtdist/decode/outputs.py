"""What comes out of the engine: increments while it runs, whole completions at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from xtdist.config import ResourceError

FinishReason = Literal["stop", "length", "exhausted"]
"""An end or a stop string; ``max_tokens``; or no token may come: grammar, ``bad_words``,
``min_tokens`` or a processor have forbidden them all."""


class QueueFull(ResourceError):
    """The engine's waiting queue has no room: ask again later."""


class RequestFailed(Exception):
    """What belongs to one request alone has failed: a processor, its grammar, the tokenizer on its
    tokens, or its scores are no numbers. The cause says how. The request is gone, the others of the
    engine go on."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request {request_id!r} failed; the engine goes on without it")
        self.request_id = request_id


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a chosen token under the model's own distribution, and the best others
    as (token id, log-probability), best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Output:
    """What one step added to one choice of one request. ``score`` only with beam search.

    ``filled``: what a request to fill masks has changed in this step, as (position, token); a token
    that was masked again is the mask. Its ``token_ids`` are the whole sequence, what was given
    included, and come in order, as soon as there is no mask before them any more.
    ``stop_reason``: the stop string that ended the choice, or the one of ``stop_token_ids``.
    ``prompt_logprobs``: in the first output of a request that asked for them, one for each token of
    the prompt; None for the first one, which nothing comes before.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    score: float | None = None
    filled: tuple[tuple[int, int], ...] = ()
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


@dataclass(frozen=True)
class Choice:
    """One finished continuation. ``token_ids`` ends with the EOS or stop token where one ended it;
    ``text`` never shows it. ``score``: beam search's length-penalised sum of log-probabilities.
    ``stop_reason``: as in ``Output``."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    score: float | None = None
    stop_reason: str | int | None = None


@dataclass(frozen=True)
class Completion:
    """All choices for one prompt; with beam search, best first. ``prompt_logprobs``: as in
    ``Output``."""

    choices: tuple[Choice, ...]
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


def collect(outputs: list[Output]) -> Completion:
    """Join the increments of one request into its choices."""
    by_index: dict[int, list[Output]] = {}
    for output in outputs:
        by_index.setdefault(output.index, []).append(output)
    scored = (o.prompt_logprobs for o in outputs if o.prompt_logprobs is not None)
    return Completion(tuple(_join(by_index[i]) for i in sorted(by_index)), next(scored, None))


def _join(parts: list[Output]) -> Choice:
    last = parts[-1]
    assert last.finish_reason is not None, "a choice was collected before it finished"
    return Choice(
        token_ids=tuple(t for p in parts for t in p.token_ids),
        text="".join(p.text for p in parts),
        finish_reason=last.finish_reason,
        logprobs=tuple(x for p in parts for x in p.logprobs),
        score=last.score,
        stop_reason=last.stop_reason,
    )


def best_of(outputs: list[Output], n: int, *, logprobs: bool) -> list[Output]:
    """Of a request whose choices have all ended: the ``n`` with the highest mean log-probability,
    best first, each as one output. ``logprobs``: whether they shall still be in it."""
    choices = collect(outputs).choices
    ranked = sorted(choices, key=lambda c: -_mean([x.logprob for x in c.logprobs]))
    return [
        Output(
            outputs[0].request_id,
            index,
            token_ids=c.token_ids,
            text=c.text,
            logprobs=c.logprobs if logprobs else (),
            finish_reason=c.finish_reason,
            stop_reason=c.stop_reason,
        )
        for index, c in enumerate(ranked[:n])
    ]


def _mean(values: list[float]) -> float:
    """Of no values: the lowest there is."""
    return sum(values) / len(values) if values else -math.inf
