"""The outer surface of a stack: x-transformers' names for what a forward pass is given, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xtdist.model.config import LayersConfig
from xtdist.model.options.left_out import LEFT_OUT_OF_FORWARD
from xtdist.model.options.resolver import documents_refused
from xtdist.model.run_order import execution_of
from xtdist.model.stack import StackInputs
from xtdist.model.stack_checks import check_stack, needs_condition
from xtdist.nn.attention.cache import KVCache
from xtdist.nn.attention.inputs import AddedKeyValues

RepeatBlock = tuple[int | tuple[int, int], int]
RepeatBlocks = RepeatBlock | tuple[RepeatBlock, ...]


class StackKeywords(TypedDict, total=False):
    """Optional inputs of a forward pass. Masks: True = a real token, or may attend.

    mask: (b, n) real tokens; the rest is padding, which nobody reads.
    seq_start_pos: (b,) the same for left padding: so many tokens of padding first.
    self_attn_kv_mask: (b, n) tokens that others may read.
    attn_mask: (i, j), (h, i, j) or (b, h, i, j) who may read whom, among tokens.
    attn_bias: (b|1, h|1, i, j) added to the scores.
    documents: (b, n) numbers: tokens read only tokens of their own number (packing).
    prefix_attn_len: (b,) or a number: so many first tokens see each other (PrefixDecoder).
    pos: (b, n) or (n,) positions; without it 0, 1, 2, ….
    context, context_mask, context_pos: (b, j, c), (b, j), (b, j) or (j,): what is attended to.
    condition: (b, c) or (b, n, c) for adaptive norms. in_attn_cond: (b, d) or (b, n, d), added to
    the input of every sublayer.
    mems, mem_masks: for each self attention (b, m, d) and (b, m), hidden states from before.
    self_attn_additional_kv: keys and values (b, hk, e, d) for the last self attentions, with
    additional_kv_mask (b, e) and detach_additional_kv.
    cache: of earlier tokens; ``x`` then holds new tokens only and needs ``pos``.
    layers_execute_order: numbers of the sublayers to run. repeat_blocks: ((block or (first, last),
    times), …), blocks to run several times, counted from 0, the last one included.
    """

    mask: Bool[Tensor, "b n"] | None
    seq_start_pos: Int[Tensor, " b"] | None
    self_attn_kv_mask: Bool[Tensor, "b n"] | None
    attn_mask: Bool[Tensor, "..."] | None
    attn_bias: Float[Tensor, "b h i j"] | None
    documents: Int[Tensor, "b n"] | None
    prefix_attn_len: Int[Tensor, " b"] | int | None
    pos: Int[Tensor, "b n"] | Int[Tensor, " n"] | None
    context: Float[Tensor, "b j c"] | None
    context_mask: Bool[Tensor, "b j"] | None
    context_pos: Int[Tensor, "b j"] | Int[Tensor, " j"] | None
    condition: Float[Tensor, "b c"] | Float[Tensor, "b n c"] | None
    in_attn_cond: Float[Tensor, "b d"] | Float[Tensor, "b n d"] | None
    mems: Sequence[Float[Tensor, "b m d"]] | None
    mem_masks: Sequence[Bool[Tensor, "b m"]] | None
    self_attn_additional_kv: Sequence[tuple[Tensor, Tensor] | None] | None
    additional_kv_mask: Bool[Tensor, "b e"] | None
    detach_additional_kv: bool
    cache: KVCache | None
    layers_execute_order: Sequence[int] | None
    repeat_blocks: RepeatBlocks | None


def stack_inputs(
    x: Tensor, config: LayersConfig, given: StackKeywords, *, keep: bool = False
) -> StackInputs:
    """The inputs of a stack over ``x`` (b, n, …).

    Raises:
        ValueError: a shape, type or combination that the stack can't take.
        TypeError: a keyword that is not known.
    """
    unknown = set(given) - set(StackKeywords.__annotations__)
    for name in sorted(unknown & set(LEFT_OUT_OF_FORWARD)):
        raise TypeError(f"forward: xtdist leaves out {name!r}: {LEFT_OUT_OF_FORWARD[name]}")
    if unknown:
        raise TypeError(
            f"forward: unknown keyword {sorted(unknown)[0]!r}; known: "
            f"{', '.join(StackKeywords.__annotations__)}"
        )
    _check_together(config, given)
    check_stack(x, config, given)
    b, n = x.shape[:2]
    memories = tuple(given.get("mems") or ())
    mask, pos = given.get("mask"), given.get("pos")
    start = given.get("seq_start_pos")
    if start is not None:
        place = torch.arange(n, device=x.device) - start[:, None]
        mask = place >= 0 if mask is None else mask & (place >= 0)
        memory = getattr(config, "memory_tokens", None)
        if pos is None and (memory is None or memory.every is None):
            pos = place.clamp(min=0)
    prefix = given.get("prefix_attn_len")
    if isinstance(prefix, int):
        prefix = torch.full((b,), prefix, device=x.device)
    return StackInputs(
        mask=mask,
        key_mask=given.get("self_attn_kv_mask"),
        attn_mask=given.get("attn_mask"),
        attn_bias=given.get("attn_bias"),
        documents=given.get("documents"),
        prefix=prefix,
        pos=pos,
        context=given.get("context"),
        context_mask=given.get("context_mask"),
        context_pos=given.get("context_pos"),
        condition=given.get("condition"),
        inject=given.get("in_attn_cond"),
        memories=memories,
        memory_masks=tuple(given.get("mem_masks") or ()),
        added=_added(given),
        cache=given.get("cache"),
        execute=execution_of(config, given),
        keep=keep,
    )


def _check_together(config: LayersConfig, given: StackKeywords) -> None:
    """What the stack must be given, can't be given, or can't be given together."""
    crosses = config.cross_attention is not None
    cache = given.get("cache")
    if crosses and given.get("context") is None and cache is None:
        raise ValueError("context: missing; a stack with cross attention needs what to attend to")
    if not crosses and given.get("context") is not None:
        raise ValueError("context: given to a stack without cross attention (cross_attend=True)")
    wants = needs_condition(config)
    if wants and given.get("condition") is None:
        raise ValueError(
            "condition: missing; adaptive norms and scales need (batch, dim_condition)"
        )
    if not wants and given.get("condition") is not None:
        raise ValueError("condition: given to a stack without adaptive norms or scales")
    if given.get("prefix_attn_len") is not None and not config.prefix:
        raise ValueError("prefix_attn_len: only a PrefixDecoder (prefix=true) has a prefix")
    if given.get("in_attn_cond") is not None and config.reinject is not None:
        raise ValueError("in_attn_cond: reinject_input already adds the input; leave out one")
    if given.get("mems") is not None and given.get("documents") is not None:
        raise ValueError("documents: memories belong to no document; leave out mems")
    apart = documents_refused(config) if given.get("documents") is not None else ""
    if apart:
        raise ValueError(f"documents: can't be kept apart ({apart}); leave out one")
    if cache is None:
        return
    if given.get("pos") is None:
        raise ValueError("cache: needs pos, the position of each new token in its sequence")
    if not config.causal:
        raise ValueError("cache: only a causal model can use one (this is an encoder)")
    for name in ("mask", "attn_mask", "attn_bias", "documents", "mems", "self_attn_kv_mask"):
        if given.get(name) is not None:
            raise ValueError(f"cache: can't be combined with {name}; leave padding out instead")


def _added(given: StackKeywords) -> tuple[AddedKeyValues | None, ...]:
    extra = given.get("self_attn_additional_kv") or ()
    detach, mask = given.get("detach_additional_kv", False), given.get("additional_kv_mask")
    return tuple(
        None
        if pair is None
        else AddedKeyValues(*(pair[0].detach(), pair[1].detach()) if detach else pair, mask)
        for pair in extra
    )
