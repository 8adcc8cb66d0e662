"""Defects of x-transformers that stay out, by their numbers in the survey of it: wrong or
imprecise numbers, and tables that nobody needs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from option_grid import ids
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from wrapper_pairs import close, ours

LONG = 512


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", [{}, {"rotary_xpos": True}, {"rotary_emb_dim": 16}], ids=str)
def test_a_cast_leaves_rotary_tables_bit_identical(
    layers: dict[str, Any], dtype: torch.dtype
) -> None:
    """B1"""
    stack = ours({}, {"rotary_pos_emb": True, **layers}).layers
    # xPos has no finite factors farther out
    pos = torch.arange(0, 25_000 if "rotary_xpos" in layers else 300_000, 97)[None]
    want, got = (s._rotation(pos, None) for s in (stack, copy.deepcopy(stack).to(dtype)))
    for theirs, mine in zip(want.tables, got.tables, strict=True):
        assert mine.phase.dtype == torch.float32
        assert torch.equal(mine.phase, theirs.phase)
    if "rotary_xpos" not in layers:
        close(got.tables.query.sin[0, 0, :, 0].double(), pos[0].double().sin())
    assert len(list(stack.buffers())) == 0


def test_the_bias_of_alibi_is_exact_in_a_model_of_bf16() -> None:
    """B1: bf16 holds 8 bits, so distances beyond 256 would be rounded."""
    stack = ours({}, {"alibi_pos_bias": True}).layers.to(torch.bfloat16)
    pos = torch.arange(1000)[None]
    bias = stack.position_bias(pos, pos)
    assert bias.dtype == torch.float32
    distance = (pos[0, :, None] - pos[0]).abs().double()
    for head, slope in enumerate((2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8)):
        assert torch.equal(bias[0, head].double(), -slope * distance)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor):
                self.size = max(self.size, made.numel())
        return out


SIDES = {
    "right": torch.arange(LONG) < torch.tensor([[LONG], [300]]),
    "left": torch.arange(LONG) >= torch.tensor([[0], [200]]),
}
STACKS: dict[str, tuple[dict[str, Any], bool]] = {
    "decoder": ({}, True),
    "decoder with a window": ({"attn_max_attend_past": 16, "rotary_pos_emb": True}, True),
    "decoder with shared keys": ({"attn_kv_heads": 2, "rotary_pos_emb": True}, True),
    "encoder": ({}, False),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", STACKS)
def test_padding_makes_no_table_of_all_pairs(name: str, side: str) -> None:
    """D5: neither forward nor backward, neither one for each sample nor one for all."""
    layers, causal = STACKS[name]
    model = ours({"max_seq_len": LONG}, {**layers, "attn_flash": True}, causal=causal).train()
    with Largest() as largest:
        model(ids(2, LONG), mask=SIDES[side]).square().mean().backward()
    assert largest.size < LONG * LONG


def test_the_watch_on_tables_sees_one_where_scores_are_made() -> None:
    """D5"""
    model = ours({"max_seq_len": LONG}, {"attn_softclamp_logits": True})
    with Largest() as largest:
        model(ids(1, LONG))
    assert largest.size >= LONG * LONG * 4


RAGGED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "memory keys and rotation": ({}, {"attn_num_mem_kv": 3, "rotary_pos_emb": True}),
    "memory tokens": ({"num_memory_tokens": 2}, {"rotary_pos_emb": True}),
    "sinusoidal": ({"scaled_sinu_pos_emb": True}, {}),
    "learned": ({}, {}),
    "ALiBi": ({}, {"alibi_pos_bias": True, "attn_kv_heads": 2}),
    "T5": ({}, {"rel_pos_bias": True}),
}


@pytest.mark.parametrize("name", RAGGED)
def test_left_padding_is_as_if_it_were_not_there(name: str) -> None:
    """G10"""
    model, x = ours(*RAGGED[name]), ids(2, 12)
    start = torch.tensor([0, 5])
    got = model(x, seq_start_pos=start)
    close(got[:1], model(x[:1]))
    close(got[1:, 5:], model(x[1:, 5:]))


@pytest.mark.parametrize(
    "layers",
    [
        {"attn_sparse_topk": 8},
        {"attn_value_rmsnorm": True, "attn_kv_heads": 2},
        {"attn_use_rel_proj_pos_bias": True, "attn_num_mem_kv": 2},
    ],
    ids=str,
)
def test_options_that_crash_there_work_at_any_length(layers: dict[str, Any]) -> None:
    """G12"""
    model, x = ours({}, layers), ids(2, 12)
    want = model(x)
    assert want.isfinite().all()
    for n in (1, 3, 8):
        close(model(x[:, :n]), want[:, :n])
