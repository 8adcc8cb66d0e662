"""What a stack is given, checked at its outer surface: types, shapes, ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xtdist.model.config import LayersConfig
from xtdist.model.run_order import attentions_of
from xtdist.model.tensors import check_ids, check_shape, check_tensor, seen
from xtdist.nn.position.config import PolarConfig, RotaryConfig

TENSORS = (
    "mask",
    "seq_start_pos",
    "self_attn_kv_mask",
    "attn_mask",
    "attn_bias",
    "documents",
    "pos",
    "context",
    "context_mask",
    "context_pos",
    "condition",
    "in_attn_cond",
    "additional_kv_mask",
    "sum_embeds",
    "prepend_embeds",
    "prepend_mask",
)
"""Inputs that are tensors or None."""


def check_tensors(x: Any, given: Mapping[str, Any]) -> None:
    """What must be a tensor is one.

    Raises:
        ValueError: a list, an array, a text, …
    """
    for name, value in (("x", x), *((name, given.get(name)) for name in TENSORS)):
        if value is not None:
            check_tensor(value, name=name)
    mems = given.get("mems")
    if mems is not None:
        check_mems(mems, name="mems", what="(b, m, d)")


def check_mems(mems: Any, *, name: str, what: str) -> None:
    """A list of tensors.

    Raises:
        ValueError: one tensor, or something else in it.
    """
    if not isinstance(mems, (list, tuple)):
        raise ValueError(
            f"{name}: got {seen(mems)}; give a list with one tensor {what} for each self attention"
        )
    for number, mem in enumerate(mems):
        check_tensor(mem, name=f"{name}[{number}]")


def check_stack(x: Tensor, config: LayersConfig, given: Mapping[str, Any]) -> None:
    """Everything of ``StackKeywords`` but how it goes together.

    Raises:
        ValueError: a type, a shape or a number that the stack can't take.
    """
    check_tensors(x, given)
    b, n = x.shape[:2]
    attentions = attentions_of(config, given)
    before = _check_memories(x, config, given, attentions=attentions)
    for name in ("mask", "self_attn_kv_mask"):
        if given.get(name) is not None:
            check_shape(
                given[name], name=name, kind="bool", shapes=[(b, n)], what=", True = a real token"
            )
    _check_tables(x, config, given, keys=n + before)
    for name in ("documents", "pos"):
        if given.get(name) is not None:
            shapes = [(b, n), (1, n), (n,)] if name == "pos" else [(b, n)]
            check_shape(given[name], name=name, kind="integer", shapes=shapes)
    if given.get("seq_start_pos") is not None:
        check_shape(given["seq_start_pos"], name="seq_start_pos", kind="integer", shapes=[(b,)])
        check_ids(given["seq_start_pos"], n + 1, name="seq_start_pos", what="numbers of tokens")
    _check_prefix(given.get("prefix_attn_len"), b, n)
    _check_context(x, config, given)
    _check_conditions(x, config, given)
    _check_added(x, config, given, attentions=attentions)


def _check_memories(
    x: Tensor, config: LayersConfig, given: Mapping[str, Any], *, attentions: int
) -> int:
    """Memories and their masks; how many stand before the tokens."""
    mems, masks = given.get("mems"), given.get("mem_masks")
    if not mems:
        if masks is not None and len(masks):
            raise ValueError("mem_masks: given without mems; give those too")
        return 0
    b, size = len(x), mems[0].shape[1] if mems[0].ndim > 1 else 0
    if len(mems) != attentions:
        raise ValueError(
            f"mems: got {len(mems)}; give one for each of {attentions} self attentions"
        )
    for number, mem in enumerate(mems):
        check_shape(mem, name=f"mems[{number}]", kind="float", shapes=[(b, size, config.dim)])
    if masks is not None:
        if isinstance(masks, (list, tuple)):
            masks = [torch.ones(b, size, dtype=torch.bool) if m is None else m for m in masks]
        check_mems(masks, name="mem_masks", what="(b, m)")
        if masks and len(masks) != len(mems):
            raise ValueError(f"mem_masks: got {len(masks)} for {len(mems)} mems; give one for each")
        for number, mask in enumerate(masks):
            check_shape(mask, name=f"mem_masks[{number}]", kind="bool", shapes=[(b, size)])
    return size


def _check_tables(x: Tensor, config: LayersConfig, given: Mapping[str, Any], *, keys: int) -> None:
    """What is said of pairs of tokens: ``attn_mask`` and ``attn_bias``."""
    (b, n), heads = x.shape[:2], config.heads
    mask, bias = given.get("attn_mask"), given.get("attn_bias")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(
                f"attn_mask: got {seen(mask)}; give bool, True = may attend (numbers to add to the "
                "scores go into attn_bias)"
            )
        front = tuple(mask.shape[:-2])
        right = (
            mask.ndim in (2, 3, 4)
            and mask.shape[-2:] == (n, keys)
            and all(got in (1, want) for got, want in zip(front[::-1], (heads, b), strict=False))
        )
        if not right:
            hint = ""
            if mask.ndim == 3 and mask.shape == (b, n, keys):
                hint = "; one for each sample needs an axis for the heads: attn_mask[:, None]"
            raise ValueError(
                f"attn_mask: got {tuple(mask.shape)}; give ({n}, {keys}), (heads, {n}, {keys}) or "
                f"(batch, heads, {n}, {keys}) with {heads} heads, or 1, and batch {b}, or 1{hint}"
            )
    if bias is not None:
        if bias.dtype == torch.bool:
            raise ValueError(
                "attn_bias: got torch.bool; who may attend is said by attn_mask, and attn_bias "
                "holds floating point numbers to add to the scores"
            )
        shapes = [(i, j, n, keys) for i in (b, 1) for j in (heads, 1)]
        if not bias.is_floating_point() or tuple(bias.shape) not in shapes:
            raise ValueError(
                f"attn_bias: got {seen(bias)}; give floating point (batch or 1, heads or 1, {n}, "
                f"{keys}) with batch {b} and {heads} heads"
            )


def _check_prefix(prefix: Any, b: int, n: int) -> None:
    if prefix is None:
        return
    if isinstance(prefix, Tensor):
        check_shape(prefix, name="prefix_attn_len", kind="integer", shapes=[(b,)])
        check_ids(prefix, n + 1, name="prefix_attn_len", what="numbers of tokens")
    elif isinstance(prefix, bool) or not isinstance(prefix, int) or not 0 <= prefix <= n:
        raise ValueError(
            f"prefix_attn_len: got {prefix!r}; give a number of tokens from 0 to {n}, or integers "
            f"{(b,)}"
        )


def _check_context(x: Tensor, config: LayersConfig, given: Mapping[str, Any]) -> None:
    context = given.get("context")
    for name in ("context_mask", "context_pos"):
        if given.get(name) is not None and context is None:
            raise ValueError(f"{name}: given without context; give that too, or leave it out")
    if context is None or config.cross_attention is None:
        return
    b, width = len(x), config.dim_context or config.dim
    j = context.shape[1] if context.ndim > 1 else 0
    what = f": (batch, any length, {width})"
    check_shape(context, name="context", kind="float", shapes=[(b, j, width)], what=what)
    if given.get("context_mask") is not None:
        check_shape(given["context_mask"], name="context_mask", kind="bool", shapes=[(b, j)])
    if given.get("context_pos") is not None:
        if not isinstance(config.position, RotaryConfig):
            raise ValueError(
                "context_pos: only rotary positions turn the keys of a context "
                "(rotary_pos_emb=True); leave it out"
            )
        shapes = [(j,), (b, j)]
        check_shape(given["context_pos"], name="context_pos", kind="integer", shapes=shapes)


def _check_conditions(x: Tensor, config: LayersConfig, given: Mapping[str, Any]) -> None:
    """What changes all tokens: ``condition`` and ``in_attn_cond``."""
    (b, n), dim = x.shape[:2], config.dim
    widths = {"in_attn_cond": dim}
    own = [getattr(part, "dim_condition", None) for part in (config.norm, config.branch_scale)]
    width = next((width for width in own if width), dim)
    widths["condition"] = width // (config.condition_mlp or 1)
    for name, c in widths.items():
        if given.get(name) is not None and (name != "condition" or needs_condition(config)):
            shapes = [(b, c), (b, n, c)]
            if name == "condition":
                shapes.append((b, 1, c))
            check_shape(given[name], name=name, kind="float", shapes=shapes)


def needs_condition(config: LayersConfig) -> bool:
    """Whether a part of the stack is set by a condition."""
    scale = getattr(config.branch_scale, "needs_condition", False)
    return bool(config.norm.needs_condition or scale)


def _check_added(
    x: Tensor, config: LayersConfig, given: Mapping[str, Any], *, attentions: int
) -> None:
    """Keys and values from elsewhere."""
    name, added = "self_attn_additional_kv", given.get("self_attn_additional_kv")
    mask = given.get("additional_kv_mask")
    if added is not None and not isinstance(added, (list, tuple)):
        raise ValueError(f"{name}: got {seen(added)}; give a list of pairs (keys, values)")
    if not added:
        if mask is not None:
            raise ValueError(f"additional_kv_mask: given without {name}; give those too")
        return
    if not all(_is_pair(pair) for pair in added):
        raise ValueError(
            f"{name}: give a list with a pair (keys, values) of tensors, or None, for each of "
            "last self attentions"
        )
    if isinstance(config.position, PolarConfig):
        raise ValueError(f"{name}: polar positions have no place for keys from elsewhere")
    if len(added) > attentions:
        raise ValueError(f"{name}: got {len(added)} pairs for {attentions} self attentions")
    attention = config.attention
    heads = attention.kv_heads or config.heads
    dims = attention.dim_head, attention.value_dim_head or attention.dim_head
    for pair in added:
        if pair is None:
            continue
        e = pair[0].shape[2] if pair[0].ndim > 2 else 0
        for what, tensor, channels in zip(("keys", "values"), pair, dims, strict=True):
            shapes = [(len(x), h, e, channels) for h in (heads, 1)]
            check_shape(tensor, name=f"{name} {what}", kind="float", shapes=shapes)
        if pair[0].shape[1] != pair[1].shape[1]:
            raise ValueError(
                f"{name}: keys and values have {pair[0].shape[1]} and "
                f"{pair[1].shape[1]} heads; give the same"
            )
        if mask is not None:
            check_shape(mask, name="additional_kv_mask", kind="bool", shapes=[(len(x), e)])
    sizes = {0 if pair is None else pair[0].shape[2] for pair in added}
    if config.residual_attention and len(sizes | ({0} if len(added) < attentions else set())) > 1:
        raise ValueError(
            f"{name}: with residual_attn each attention adds to the scores of the one before, so "
            f"all {attentions} must have the same number of keys; give as many pairs, of one size"
        )


def _is_pair(pair: Any) -> bool:
    tensors = isinstance(pair, (list, tuple)) and len(pair) == 2
    return pair is None or (tensors and all(isinstance(t, Tensor) for t in pair))
