"""torch's flex attention as a backend: rules and biases become part of a fused kernel, and blocks
that a rule hides are skipped. For CUDA; on the CPU it runs without gradients, uncompiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from xtdist.nn.attention.attend import Attend, Reading
from xtdist.nn.attention.masks import Visible

Mod = Callable[..., Tensor]


def flex(
    q: Float[Tensor, "b h i d"],
    k: Float[Tensor, "b hk j d"],
    v: Float[Tensor, "b hk j dv"],
    how: Attend,
) -> Reading:
    """Softmax attention with visibility, bias, softclamp and sink; no weight dropout.

    Raises:
        ValueError: gradients are wanted on the CPU.
    """
    assert how.dropout == 0.0
    if not q.is_cuda and torch.is_grad_enabled() and q.requires_grad:
        raise ValueError(
            "attention.backend=flex has no gradients on the CPU; train with backend=auto there"
        )
    cap = None if how.mods is None else how.mods.config.softclamp
    out, lse = _kernel(q.is_cuda)(
        q,
        k,
        v,
        score_mod=_score_mod(how, cap),
        block_mask=_block_mask(how.visible, q.shape[0], q.shape[2], k.shape[2], q.device),
        scale=how.scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_lse=True,
    )
    if how.sink is not None:
        out = out * (lse - rearrange(how.sink.float(), "h -> h 1")).sigmoid()[..., None].to(q.dtype)
    return Reading(out)


@functools.cache
def _kernel(fused: bool) -> Any:
    """The compiled kernel, made at first use; without it flex attention makes whole tables."""
    return torch.compile(flex_attention, dynamic=False) if fused else flex_attention


def _score_mod(how: Attend, cap: float | None) -> Mod | None:
    """score, b, h, i, j ↦ score."""
    bias, lead = how.bias, how.visible.lead
    if bias is None and cap is None:
        return None

    def mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if bias is not None:
            at = (j - lead).clamp(min=0)
            rows, heads = b % bias.shape[0], h % bias.shape[1]
            score = score + torch.where(j >= lead, bias[rows, heads, i, at], 0.0)
        return score if cap is None else cap * torch.tanh(score / cap)

    return mod


def _block_mask(visible: Visible, b: int, i: int, j: int, device: torch.device) -> BlockMask | None:
    """Which blocks of keys each block of queries may read."""
    if visible.only_causal and not visible.causal:
        return None
    offset = j - visible.lead - i
    rules = visible

    def mod(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        place, at = key - rules.lead, query + offset
        inside = place.clamp(min=0)
        allowed = key >= 0
        if rules.causal:
            past = place <= at
            allowed = allowed & (
                past if rules.prefix is None else past | (place < rules.prefix[row])
            )
        if rules.window is not None:
            allowed = allowed & (at - place <= rules.window)
        if rules.keys is not None:
            allowed = allowed & rules.keys[row, inside]
        if rules.documents is not None:
            allowed = allowed & (rules.documents[row, inside] == rules.documents[row, at])
        if rules.table is not None:
            table = rules.table
            allowed = allowed & table[row % table.shape[0], head % table.shape[1], query, inside]
        if rules.lead == 0:
            return allowed
        if rules.lead_keys is None:
            return allowed | (place < 0)
        lead = rules.lead_keys[row, key.clamp(max=rules.lead - 1)]
        return torch.where(place < 0, lead, allowed)

    per_head = rules.table is not None and rules.table.shape[1] > 1
    return create_block_mask(
        mod,
        b,
        rules.table.shape[1] if per_head and rules.table is not None else None,
        i,
        j,
        device=str(device),
    )
