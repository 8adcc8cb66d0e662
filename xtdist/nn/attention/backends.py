"""Ways to read values by scores. All give the same numbers up to rounding."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from xtdist.nn.attention.attend import Attend, Backend, Reading, remembered
from xtdist.nn.attention.flex import flex
from xtdist.nn.attention.scores import dot


def sdpa(
    q: Float[Tensor, "b h i d"],
    k: Float[Tensor, "b hk j d"],
    v: Float[Tensor, "b hk j dv"],
    how: Attend,
) -> Reading:
    """torch's fused kernels: no table of scores; one of masks or biases only where a rule other
    than plain causality asks for it."""
    i, j, rules = q.shape[2], k.shape[2], how.visible
    free = rules.only_causal and how.bias is None and how.sink is None
    if free and (i == 1 or not rules.causal):
        return Reading(_unmasked(q, k, v, how))
    if free and i == j:
        return Reading(_kernel(q, k, v, how, is_causal=True))
    pieces = rules.causal and rules.window is not None and rules.prefix is None
    if pieces and i == j - rules.lead > _piece(rules.window or 0):
        return Reading(_windowed(q, k, v, how))
    mask = remembered(how, "mask", lambda: _mask(how, q, j))
    if how.sink is not None:
        k, v = F.pad(k, (0, 0, 1, 0)), F.pad(v, (0, 0, 1, 0))
    out = _kernel(q, k, v, how, mask=mask)
    empty = remembered(how, "empty", lambda: _empty(how, i, j, q.device))
    return Reading(out if empty is None else out.masked_fill(empty, 0.0))


def _piece(window: int) -> int:
    """Queries that are computed together under a window: with their keys, a table of at most twice
    that width."""
    return max(window + 1, 128)


def _windowed(q: Tensor, k: Tensor, v: Tensor, how: Attend) -> Tensor:
    """Piece by piece: each has only the keys that its queries reach, so no table has n · n places
    and nothing out of reach is computed."""
    rules, n = how.visible, q.shape[2]
    assert rules.window is not None
    lead, size, outs = rules.lead, _piece(rules.window), []
    for start in range(0, n, size):
        stop, first = min(start + size, n), max(0, start - rules.window)
        keys, values = (
            torch.cat((t[:, :, :lead], t[:, :, lead + first : lead + stop]), dim=2) for t in (k, v)
        )
        bias = None if how.bias is None else how.bias[..., start:stop, first:stop]
        part = replace(how, visible=rules.cut(start, stop, first), bias=bias, memo=None)
        outs.append(sdpa(q[:, :, start:stop], keys, values, part).out)
    return torch.cat(outs, dim=2)


def _empty(how: Attend, i: int, j: int, device: torch.device) -> Bool[Tensor, "b h i 1"] | None:
    """Queries that may read nothing."""
    if not how.visible.may_hide_all or how.sink is not None:
        return None
    allowed = how.visible.dense(i, j, device)
    return None if allowed is None else ~allowed.any(dim=-1, keepdim=True)


def _mask(how: Attend, q: Float[Tensor, "b h i d"], j: int) -> Tensor | None:
    """The table for the kernel: of rules alone, or of rules and what is added. A query that may
    read nothing reads everything here, so that no number becomes NaN."""
    allowed, empty = (
        how.visible.dense(q.shape[2], j, q.device),
        _empty(how, q.shape[2], j, q.device),
    )
    if allowed is not None and empty is not None:
        allowed = allowed | empty
    plain = how.bias is None and how.sink is None
    return allowed if plain else _additive(allowed, how, q, j)


def _unmasked(q: Tensor, k: Tensor, v: Tensor, how: Attend) -> Tensor:
    if q.shape[2] > 1 or q.shape[1] == k.shape[1]:
        return _kernel(q, k, v, how)
    # One query: a group's heads become rows over their one key head, which is not repeated.
    rows = rearrange(q, "b (hk g) 1 d -> b hk g d", hk=k.shape[1])
    return rearrange(_kernel(rows, k, v, how), "b hk g d -> b (hk g) 1 d")


def _kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    how: Attend,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=how.dropout,
        is_causal=is_causal,
        scale=how.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _additive(
    allowed: Bool[Tensor, "b h i j"] | None, how: Attend, q: Float[Tensor, "b h i d"], j: int
) -> Float[Tensor, "b h i j"]:
    """Mask and bias in one table, in the queries' type, a column for the sink first."""
    bias = how.bias
    if bias is None:
        bias = q.new_zeros((1, 1, 1, j), dtype=torch.float32)
    elif how.visible.lead:
        bias = F.pad(bias, (how.visible.lead, 0))
    if allowed is not None:
        bias = bias.masked_fill(~allowed, float("-inf"))
    if how.sink is not None:
        bias = bias.expand(-1, q.shape[1], q.shape[2], -1)
        bias = torch.cat((_column(how.sink, bias), bias), dim=-1)
    if q.dtype == torch.float32:
        return bias
    # A softmax is the same from any zero; few digits are lost where a row is near its largest.
    return (bias - bias.detach().amax(dim=-1, keepdim=True)).to(q.dtype)


def _column(sink: Float[Tensor, " h"], scores: Float[Tensor, "b h i j"]) -> Tensor:
    """The sink's scores as a first key of ``scores``."""
    return rearrange(sink.float(), "h -> 1 h 1 1").expand(len(scores), -1, scores.shape[2], 1)


def eager(
    q: Float[Tensor, "b h i d"],
    k: Float[Tensor, "b hk j d"],
    v: Float[Tensor, "b hk j dv"],
    how: Attend,
) -> Reading:
    """The formula, step by step, scores and weights in fp32. Memory grows with i · j. A query that
    may read nothing has scores of −∞ and weights of zero."""
    mods, visible = how.mods, how.visible
    raw = (dot(q, k) if mods is None else mods.similarity(q, k)) * how.scale
    if how.previous is not None:  # hidden there is hidden here: no −∞ may reach what mixes heads
        raw = raw + how.previous.masked_fill(how.previous.isneginf(), 0.0)
    scores = raw if mods is None else mods.raw(raw)
    if how.bias is not None:
        scores = scores + F.pad(how.bias, (visible.lead, 0))
    scores = scores if mods is None else mods.biased(scores)
    sign = None
    if mods is not None and mods.signed:
        sign, scores = scores.sign(), scores.abs()
    allowed, empty = visible.dense(q.shape[2], k.shape[2], q.device), None
    if allowed is not None:
        if visible.may_hide_all:
            empty = ~allowed.any(dim=-1, keepdim=True)
        scores = scores.masked_fill(~allowed, float("-inf"))
    scores = scores if mods is None else mods.masked(scores, q, allowed, visible)
    weights = _weigh(scores if empty is None else scores.masked_fill(empty, 0.0), how)
    weights = weights if empty is None else weights.masked_fill(empty, 0.0)
    weights = weights if sign is None else weights * sign
    kept = weights
    weights = F.dropout(weights, how.dropout) if how.dropout else weights
    weights = weights if mods is None else mods.weights(weights, raw)
    grouped = rearrange(weights.to(v.dtype), "b (hk g) i j -> b hk g i j", hk=v.shape[1])
    out = einsum(grouped, v, "b hk g i j, b hk j d -> b hk g i d")
    out = rearrange(out, "b hk g i d -> b (hk g) i d")
    out = out if empty is None else out.masked_fill(empty, 0.0)
    return Reading(out, (scores,), (kept,)) if how.keep_scores else Reading(out)


def _weigh(scores: Tensor, how: Attend) -> Tensor:
    if how.sink is not None:
        sink = how.sink.abs() if how.mods is not None and how.mods.signed else how.sink
        scores = torch.cat((_column(sink, scores), scores), dim=-1)
    weights = scores.softmax(dim=-1) if how.mods is None else how.mods.weigh(scores)
    return weights if how.sink is None else weights[..., 1:]


BACKENDS: dict[str, Backend] = {"sdpa": sdpa, "eager": eager, "flex": flex}
