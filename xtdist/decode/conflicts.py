"""Which parameters of a generation exclude each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from xtdist.config import ConfigError

if TYPE_CHECKING:
    from xtdist.decode.params import GenerationParams

FILTERS = ("top_k", "top_p", "min_p", "top_a", "typical_p", "temperature_last")
BEAM_FIELDS = ("stochastic_beams", "length_penalty", "early_stopping")


def check_conflicts(p: GenerationParams) -> None:
    """Raises ConfigError for what can't be honoured together, naming the field to change."""
    if p.best_of is not None and p.best_of < p.n:
        raise ConfigError(f"best_of: got {p.best_of}, fewer than n {p.n}; raise best_of or lower n")
    if not p.max_tokens:
        _check_scores_only(p)
    if p.grammar is not None and p.ignore_eos:
        raise ConfigError("ignore_eos: got true with a grammar, which must be able to end")
    if p.dola is not None and p.contrastive is not None:
        raise ConfigError("dola: got it together with contrastive; choose one contrast")
    if p.uses_beams:
        _check_beams(p)
    else:
        _only_default(p, BEAM_FIELDS, "without beams; set num_beams, or leave it out")
    if p.penalty_alpha > 0:
        _check_search(p)
    if p.resume_tokens:
        _check_resumed(p)


def _check_scores_only(p: GenerationParams) -> None:
    """Nothing is generated."""
    if p.prompt_logprobs is None:
        raise ConfigError(
            "max_tokens: got 0, which only prompt_logprobs can do with; give at least 1"
        )
    _only_default(
        p,
        ("best_of", "num_beams", "penalty_alpha"),
        "with max_tokens 0: leave it out, or generate something",
    )


def _check_beams(p: GenerationParams) -> None:
    if p.n > p.num_beams:
        raise ConfigError(
            f"n: got {p.n}, but only num_beams {p.num_beams} beams are kept; "
            "raise num_beams or lower n"
        )
    _only_default(
        p,
        ("logprobs", "best_of", "draft_tokens", "penalty_alpha"),
        "with beams: leave it out, or search without beams",
    )
    if not p.stochastic_beams:
        _check_draws_nothing(p, f"num_beams {p.num_beams}; beam search")
        return
    if p.greedy:
        raise ConfigError(
            f"temperature: got {p.temperature} with stochastic_beams, which draw; raise it"
        )
    _only_default(
        p,
        ("length_penalty", "early_stopping"),
        "with stochastic_beams, which are drawn, not ranked by length: leave it out",
    )


def _check_search(p: GenerationParams) -> None:
    """Contrastive search."""
    if p.top_k < 2:
        raise ConfigError(
            f"penalty_alpha: got {p.penalty_alpha} with top_k {p.top_k}; contrastive search chooses"
            " one of the top_k best tokens: set top_k to 2 or more"
        )
    _check_draws_nothing(p, "penalty_alpha; contrastive search", but=("top_k",))
    _only_default(
        p,
        ("n", "best_of", "contrastive", "dola", "draft_tokens"),
        "with penalty_alpha: leave it out, or set penalty_alpha to 0",
    )


def _check_resumed(p: GenerationParams) -> None:
    """What is given must be all that there was."""
    if p.resume_tokens >= p.max_tokens:
        raise ConfigError(
            f"resume_tokens: got {p.resume_tokens}, and max_tokens {p.max_tokens} counts them, too;"
            " there is nothing to resume"
        )
    _only_default(
        p,
        ("n", "best_of", "num_beams", "penalty_alpha", "logprobs", "prompt_logprobs"),
        "with resume_tokens: leave it out, or ask from the start",
    )


def _check_draws_nothing(p: GenerationParams, method: str, but: tuple[str, ...] = ()) -> None:
    reason = f"with {method} ranks by the model's own probabilities and draws nothing"
    if p.temperature not in (0.0, 1.0):
        raise ConfigError(f"temperature: got {p.temperature} {reason}: leave it out")
    _only_default(p, [f for f in FILTERS if f not in but], f"{reason}: leave it out")


def _only_default(p: GenerationParams, names: Iterable[str], why: str) -> None:
    """Raises ConfigError for the first of the fields that is set."""
    for name in names:
        value = getattr(p, name)
        if value != getattr(type(p), name):
            raise ConfigError(f"{name}: got {value!r:.80} {why}")
