"""x-transformers' names for how to generate, next to our own."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from xtdist.config import ConfigError
from xtdist.decode.params import ContrastiveParams, GenerationParams

OURS = {f.name for f in dataclasses.fields(GenerationParams)} - {"max_tokens"}
FILTERS: dict[str, dict[str, Any]] = {
    "top_k": {"frac_num_tokens": 0.1, "k": None},
    "top_p": {"thres": 0.9},
    "min_p": {"min_p": 0.1},
}
"""Their filters with the arguments that they take."""
LEFT_OUT = {
    "cache_kv": "the cache never changes a token, and is used wherever the model allows it",
    "restrict_to_max_seq_len": "a sequence ends at max_seq_len; nothing is dropped from its start",
    "return_intermediates": "the engine owns the cache; use xtdist.decode.Engine for more control",
    "beams": "use num_beams",
}


def generation_params(
    seq_len: int, keywords: Mapping[str, Any], *, num_tokens: int
) -> GenerationParams:
    """``keywords`` are fields of ``GenerationParams``, or x-transformers' ``filter_logits_fn`` with
    ``filter_kwargs``, and ``contrastive_decode_kwargs``.

    As there, the best 10 % of the vocabulary are kept if nothing else is said: where tokens are
    drawn, no filter of ours is named and there is no contrast.

    Raises:
        TypeError: an unknown keyword, with the nearest one.
        ConfigError: a value that can't be honoured.
    """
    theirs = {"filter_logits_fn", "filter_kwargs", "contrastive_decode_kwargs"}
    for name in keywords.keys() - OURS - theirs:
        if name in LEFT_OUT:
            raise TypeError(f"generate: xtdist leaves out {name!r}: {LEFT_OUT[name]}")
        near = difflib.get_close_matches(name, OURS | theirs, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(OURS))}"
        raise TypeError(f"generate: unknown keyword {name!r}; {hint}")
    ours = {k: v for k, v in keywords.items() if k in OURS}
    contrast = keywords.get("contrastive_decode_kwargs")
    if contrast is not None:
        ours.setdefault("contrastive", ContrastiveParams(**contrast))
    draws = ours.get("temperature", 1.0) > 0 and ours.get("num_beams", 1) == 1
    chosen = {"top_k", "top_p", "min_p", "contrastive"} & ours.keys()
    default = "top_k" if draws and not chosen else None
    name = keywords.get("filter_logits_fn", default)
    if name is not None:
        ours |= _filter(name, keywords.get("filter_kwargs") or {}, num_tokens)
    elif keywords.get("filter_kwargs"):
        raise ConfigError("filter_kwargs: there is no filter to take them; give filter_logits_fn")
    return GenerationParams(max_tokens=seq_len, **ours)


def _filter(name: Any, given: Mapping[str, Any], num_tokens: int) -> dict[str, Any]:
    """The field that does what their filter does."""
    if not isinstance(name, str) or name not in FILTERS:
        raise ConfigError(
            f"filter_logits_fn: got {name!r}; give {' or '.join(map(repr, FILTERS))}, or None"
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
    k = values["k"]
    if k is None:
        k = math.ceil(values["frac_num_tokens"] * num_tokens)
    return {"top_k": min(k, num_tokens)}
