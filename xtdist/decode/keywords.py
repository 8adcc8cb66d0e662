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
    seq_len: int,
    keywords: Mapping[str, Any],
    *,
    num_tokens: int,
    amateurs: int = 0,
    kind: type[GenerationParams] = GenerationParams,
) -> GenerationParams:
    """``keywords`` are fields of ``GenerationParams``, or x-transformers' ``filter_logits_fn`` with
    ``filter_kwargs``, and ``contrastive_decode_kwargs`` (one for all ``amateurs``, or a tuple). A
    function as ``filter_logits_fn`` is no parameter: ``processor_of``.

    As there, the best 10 % of the vocabulary are kept if nothing else is said: where tokens are
    drawn, no filter of ours is named and there is no contrast; and their filters come before the
    temperature. ``filter_kwargs`` alone are of that default filter, also where it has nothing to
    do. Amateurs are contrasted with unless they draft (``draft_tokens``). ``kind``: what to make.

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
    return kind(max_tokens=seq_len, **ours, **_filtering(keywords, ours, num_tokens))


def processor_of(keywords: Mapping[str, Any]) -> LogitsProcessor | None:
    """The function that was given as ``filter_logits_fn``, as the engine calls it: before
    penalties, contrast and temperature, greedy or not."""
    function = keywords.get("filter_logits_fn")
    if not callable(function):
        return None
    arguments = _arguments(keywords)

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


def _filtering(
    keywords: Mapping[str, Any], ours: Mapping[str, Any], num_tokens: int
) -> dict[str, Any]:
    """The fields that ``filter_logits_fn`` and ``filter_kwargs`` mean beside ``ours``."""
    arguments = _arguments(keywords)
    named = OUR_FILTERS & ours.keys()
    if "filter_logits_fn" not in keywords:
        free = _draws_freely(ours)
        # where their default filter has nothing to filter, its arguments are as good as none
        idle = not free and ours.get("num_beams", 1) == 1 and not named
        if free or (idle and arguments):
            fields = _filter("top_k", arguments, num_tokens)
            return fields if free else {}
    chosen = keywords.get("filter_logits_fn")
    if chosen is None and arguments:
        raise ConfigError("filter_kwargs: there is no filter to take them; give filter_logits_fn")
    if chosen is None or callable(chosen):
        return {}
    fields = _filter(chosen, arguments, num_tokens)
    twice = sorted(fields.keys() & ours.keys())
    if twice:
        raise ConfigError(f"filter_logits_fn: {twice[0]} is given too; leave one of them out")
    # k best are the same ones at any temperature
    if chosen == "top_k" or not _draws(ours) or "temperature_last" in ours:
        return fields
    after = sorted(named - {"top_k"})
    if after and ours.get("temperature", 1.0) != 1:
        raise ConfigError(
            f"{after[0]}: it comes after the temperature, the filter of filter_logits_fn before "
            "it; leave one of them out, or say with temperature_last where both come"
        )
    return {**fields, "temperature_last": True}


def _arguments(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """``filter_kwargs``. Raises ConfigError for what is none."""
    given = keywords.get("filter_kwargs")
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"filter_kwargs: got {given!r:.80}; give a dict, like {{'k': 20}}")
    return dict(given)


def _draws_freely(ours: Mapping[str, Any]) -> bool:
    """Whether tokens are drawn and nothing says from which."""
    draws = _draws(ours) and ours.get("num_beams", 1) == 1
    return draws and not (OUR_FILTERS | {"contrastive"}) & ours.keys()


def _draws(ours: Mapping[str, Any]) -> bool:
    """Whether it is not greedy; what is no number is refused later."""
    temperature = ours.get("temperature", 1.0)
    return not isinstance(temperature, (int, float)) or temperature > 0


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
    return {"top_k": min(_count(values["k"], values["frac_num_tokens"], num_tokens), num_tokens)}


def _count(k: Any, part: Any, num_tokens: int) -> int:
    """How many tokens ``top_k`` keeps: ``k``, or that part of the vocabulary."""
    if k is not None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigError(
                f"filter_kwargs: k: got {k!r}; give a whole number from 1 on "
                "(filter_logits_fn=None keeps all)"
            )
        return k
    number = isinstance(part, (int, float)) and not isinstance(part, bool)
    if not number or not 0 < part < math.inf:
        raise ConfigError(
            f"filter_kwargs: frac_num_tokens: got {part!r}; give a part of the vocabulary, more "
            "than 0 (filter_logits_fn=None keeps all)"
        )
    return math.ceil(part * num_tokens)
