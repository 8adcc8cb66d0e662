"""x-transformers' names for how to generate, next to our own."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.decode.params import ContrastiveParams, GenerationParams
from xtdist.decode.processors import LogitsProcessor
from xtdist.model.outputs import ModelInputs

OURS = {f.name for f in dataclasses.fields(GenerationParams)} - {"max_tokens"}
THEIRS = {"filter_logits_fn", "filter_kwargs", "contrastive_decode_kwargs"}
FILTERS: dict[str, dict[str, Any]] = {
    "top_k": {"frac_num_tokens": 0.1, "k": None},
    "top_p": {"thres": 0.9},
    "top_a": {"min_p_pow": 2.0, "min_p_ratio": 0.02},
    "min_p": {"min_p": 0.1},
}
"""Their filters with the arguments that they take."""
OUR_FILTERS = {"top_k", "top_p", "min_p", "top_a", "typical_p"}
LEFT_OUT = {
    "return_intermediates": "the engine owns the cache; use xtdist.decode.Engine for more control",
    "beams": "use beam_search, or num_beams",
    "mask": "leave padding out: give prompt_lens, or a list of prompts",
    "seq_start_pos": "leave padding out: give prompt_lens, or a list of prompts",
    "logprobs": "tokens are all that comes back; use xtdist.decode.generate",
}


def generation_params(
    seq_len: int, keywords: Mapping[str, Any], *, num_tokens: int, amateurs: int = 0
) -> GenerationParams:
    """``keywords`` are fields of ``GenerationParams``, or x-transformers' ``filter_logits_fn`` with
    ``filter_kwargs``, and ``contrastive_decode_kwargs`` (one for all ``amateurs``, or a tuple). A
    function as ``filter_logits_fn`` is no parameter: ``processor_of``.

    As there, the best 10 % of the vocabulary are kept if nothing else is said: where tokens are
    drawn, no filter of ours is named and there is no contrast; and their filters come before the
    temperature. Amateurs are contrasted with unless they draft (``draft_tokens``).

    Raises:
        TypeError: an unknown keyword, with the nearest one.
        ConfigError: a value that can't be honoured.
    """
    check_names(keywords)
    ours = {k: v for k, v in keywords.items() if k in OURS}
    contrast = keywords.get("contrastive_decode_kwargs")
    if contrast is not None and "contrastive" in ours:
        raise ConfigError(
            "contrastive_decode_kwargs: given with contrastive; leave one of them out"
        )
    if contrast is None and amateurs and not ours.get("draft_tokens"):
        contrast = {}
    if contrast is not None:
        ours.setdefault("contrastive", _contrasts(contrast, amateurs))
    default = "top_k" if _draws_freely(ours) else None
    chosen = keywords.get("filter_logits_fn", default)
    if chosen is None or callable(chosen):
        if keywords.get("filter_kwargs") and chosen is None:
            raise ConfigError(
                "filter_kwargs: there is no filter to take them; give filter_logits_fn"
            )
    else:
        ours |= _filter(chosen, keywords.get("filter_kwargs") or {}, num_tokens)
        # k best are the same ones at any temperature
        if chosen != "top_k" and ours.get("temperature", 1.0) > 0:
            ours.setdefault("temperature_last", True)
    return GenerationParams(max_tokens=seq_len, **ours)


def processor_of(keywords: Mapping[str, Any]) -> LogitsProcessor | None:
    """The function that was given as ``filter_logits_fn``, as the engine calls it: before
    penalties, contrast and temperature, greedy or not."""
    function = keywords.get("filter_logits_fn")
    if not callable(function):
        return None
    arguments = dict(keywords.get("filter_kwargs") or {})

    def filtered(tokens: Sequence[int], scores: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
        return cast(Tensor, function(rearrange(scores, "v -> 1 v"), **arguments))[0]

    return filtered


def check_names(keywords: Mapping[str, Any]) -> None:
    """Refuse what is neither ours nor theirs.

    Raises:
        TypeError: naming the nearest keyword, or what to do instead.
    """
    for name in keywords:
        if name in LEFT_OUT:
            raise TypeError(f"generate: xtdist leaves out {name!r}: {LEFT_OUT[name]}")
        if name in OURS | THEIRS:
            continue
        if name in ModelInputs.__annotations__:
            raise TypeError(
                f"generate: {name!r} is an input of forward that a request does not carry; prompts "
                "are token ids, and context is all that they read beside"
            )
        near = difflib.get_close_matches(name, OURS | THEIRS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(OURS))}"
        raise TypeError(f"generate: unknown keyword {name!r}; {hint}")


def _draws_freely(ours: Mapping[str, Any]) -> bool:
    """Whether tokens are drawn and nothing says from which."""
    draws = ours.get("temperature", 1.0) > 0 and ours.get("num_beams", 1) == 1
    return draws and not (OUR_FILTERS | {"contrastive"}) & ours.keys()


def _contrasts(given: Any, amateurs: int) -> Any:
    """One ``ContrastiveParams``, or one for each of several amateurs."""
    count = max(amateurs, 1)
    several = isinstance(given, Sequence)
    each = list(given) if several else [given] * count
    if len(each) != count:
        raise ConfigError(
            f"contrastive_decode_kwargs: got {len(each)} for {count} amateurs; give one for each, "
            "or one dict for all"
        )
    fields = {f.name for f in dataclasses.fields(ContrastiveParams)}
    for one in each:
        if not isinstance(one, Mapping) or one.keys() - fields:
            raise ConfigError(
                f"contrastive_decode_kwargs: got {one!r:.80}; give a dict with any of "
                f"{', '.join(sorted(fields))}"
            )
    made = tuple(ContrastiveParams(**one) for one in each)
    return made if count > 1 else made[0]


def _filter(name: Any, given: Mapping[str, Any], num_tokens: int) -> dict[str, Any]:
    """The field that does what their filter does."""
    if not isinstance(name, str) or name not in FILTERS:
        raise ConfigError(
            f"filter_logits_fn: got {name!r}; give {', '.join(map(repr, FILTERS))}, None or a "
            "function of logits (b, v)"
        )
    unknown = given.keys() - FILTERS[name].keys()
    if unknown:
        raise ConfigError(
            f"filter_kwargs: {name} has no {sorted(unknown)[0]!r}; it takes "
            f"{', '.join(FILTERS[name])}"
        )
    values: dict[str, Any] = {**FILTERS[name], **given}
    if name == "top_p":
        return {"top_p": values["thres"]}
    if name == "min_p":
        return {"min_p": values["min_p"]}
    if name == "top_a":
        if values["min_p_pow"] != 2:
            raise ConfigError(
                f"filter_kwargs: min_p_pow: got {values['min_p_pow']}; top_a is defined with 2: "
                "leave it out, or give a function as filter_logits_fn"
            )
        return {"top_a": values["min_p_ratio"]}
    k = values["k"]
    if k is None:
        k = math.ceil(values["frac_num_tokens"] * num_tokens)
    return {"top_k": min(k, num_tokens)}
