"""What is given along with token ids: as long as they are, or without the last one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from xtdist.model.tensors import check_ids, check_shape, is_integer

PER_TOKEN = ("mask", "self_attn_kv_mask", "sum_embeds")
"""Inputs with the tokens on axis 1."""
PER_TOKEN_OR_ROW = ("condition", "in_attn_cond")
"""Inputs with the tokens on axis 1 where they have three."""
PER_PAIR = ("attn_mask", "attn_bias")
"""Inputs with queries and keys on the last two axes."""


def without_last(inputs: Mapping[str, Any], n: int) -> dict[str, Any]:
    """``inputs`` of ``n`` tokens for the first n − 1, which are all that the network reads. What is
    n − 1 long already stays as it is."""
    given = {name: value for name, value in inputs.items() if value is not None}
    for name in PER_TOKEN:
        if name in given:
            given[name] = _cut(given[name], n, axis=1)
    for name in PER_TOKEN_OR_ROW:
        if name in given and given[name].ndim == 3:
            given[name] = _cut(given[name], n, axis=1)
    for name in PER_PAIR:
        if name in given and given[name].ndim >= 2 and given[name].shape[-2] == n:
            given[name] = given[name][..., :-1, :-1]
    pos = given.get("pos")
    if pos is not None:
        given["pos"] = _cut(pos, n, axis=1 if pos.is_floating_point() else pos.ndim - 1)
    if "embed_ids" in given:
        ids = given["embed_ids"]
        given["embed_ids"] = {name: _cut(value, n, axis=1) for name, value in ids.items()}
    return given


def _cut(value: Tensor, n: int, *, axis: int) -> Tensor:
    fits = axis < value.ndim and value.shape[axis] == n
    return value.narrow(axis, 0, n - 1) if fits else value


def real_tokens(
    x: Int[Tensor, "b n"],
    inputs: Mapping[str, Any],
    lens: Int[Tensor, " b"] | None,
    *,
    whole: bool = False,
) -> Bool[Tensor, "b n"] | None:
    """The tokens that are no padding by ``lens``, ``mask`` and ``seq_start_pos``; None: all.
    ``whole``: a mask may not leave out the last one.

    Raises:
        ValueError: other types, or not one for each row or token.
    """
    (b, n), place = x.shape, torch.arange(x.shape[1], device=x.device)
    found: list[Tensor] = []
    if lens is not None:
        what = ", the real tokens of each row"
        check_shape(lens, name="lens", kind="integer", shapes=[(b,)], what=what)
        check_ids(lens, n + 1, name="lens", what="the real tokens of each row")
        found.append(place < rearrange(lens, "b -> b 1"))
    start, mask = inputs.get("seq_start_pos"), inputs.get("mask")
    if start is not None:
        check_shape(start, name="seq_start_pos", kind="integer", shapes=[(b,)])
        found.append(place >= rearrange(start, "b -> b 1"))
    if mask is not None:
        shapes, what = [(b, n), *([] if whole else [(b, n - 1)])], ", True = a real token"
        check_shape(mask, name="mask", kind="bool", shapes=shapes, what=what)
        found.append(F.pad(mask, (0, n - mask.shape[1]), value=True))
    return torch.stack(found).all(dim=0) if found else None


def indices(ids: Tensor) -> Tensor:
    """Whole numbers of any type as one that can index and hold ``ignore_index``; others as they
    are."""
    return ids.long() if is_integer(ids) else ids


def documents_by_end(tokens: Int[Tensor, "b n"], end: int) -> Int[Tensor, "b n"]:
    """0, 1, 2 … for the documents of each row; ``end`` is the last token of one."""
    ends = (tokens == end).long()
    return ends.cumsum(dim=1) - ends


def behind(prefix: Int[Tensor, " b"] | int, targets: Int[Tensor, "b n"]) -> Bool[Tensor, "#b n"]:
    """The targets that are not inside the prefix, which what predicts them has seen."""
    place = torch.arange(1, targets.shape[1] + 1, device=targets.device)  # in the sequence
    return place >= (prefix if isinstance(prefix, int) else rearrange(prefix, "b -> b 1"))
