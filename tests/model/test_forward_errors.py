"""What a forward pass can't take: one clear error at the outer surface, nothing ignored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from option_grid import ids
from wrapper_pairs import ours, vectors

from xtdist.model import Decoder, PrefixDecoder

SIZE: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
N = 6
CROSS = {"cross_attend": True, "cross_attn_dim_context": 24}
ADAPTIVE = {"use_adaptive_rmsnorm": True, "dim_condition": 12}
CONTEXT = vectors(2, 3, 24)


def yes(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


def numbers(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long)


def pair(b: int = 2, h: int = 4, e: int = 3, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return vectors(b, h, e, d), vectors(b, h, e, d)


# what is given, what the error says, and the stack's options
WRONG: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "bool bias": ({"attn_bias": yes(2, 4, N, N)}, "said by attn_mask", {}),
    "integer bias": ({"attn_bias": numbers(2, 4, N, N)}, "floating point", {}),
    "bias heads": ({"attn_bias": vectors(2, 3, N, N)}, "batch 2 and 4 heads", {}),
    "bias batch": ({"attn_bias": vectors(3, 4, N, N)}, "batch 2 and 4 heads", {}),
    "mask of samples": ({"attn_mask": yes(2, N, N)}, r"attn_mask\[:, None\]", {}),
    "mask batch": ({"attn_mask": yes(3, 4, N, N)}, "batch 2, or 1", {}),
    "mask heads": ({"attn_mask": yes(2, 3, N, N)}, "4 heads, or 1", {}),
    "mask no tensor": ({"mask": [[True] * N] * 2}, "mask: got a list; give a torch.Tensor", {}),
    "x no tensor": ({"x": [[1.0]]}, "x: got a list; give a torch.Tensor", {}),
    "x of integers": ({"x": numbers(2, N, 32)}, "x: got torch.int64", {}),
    "x text": ({"x": "hello"}, "x: got a str", {}),
    "context width": ({"context": vectors(2, 3, 32)}, r"\(2, 3, 24\)", CROSS),
    "context batch": ({"context": vectors(3, 3, 24)}, r"\(2, 3, 24\)", CROSS),
    "context flat": ({"context": vectors(2, 24)}, "any length, 24", CROSS),
    "context numbers": ({"context": numbers(2, 3, 24)}, "context: got torch.int64", CROSS),
    "context mask shape": (
        {"context": CONTEXT, "context_mask": yes(2, 4)},
        r"context_mask: .*\(2, 3\)",
        CROSS,
    ),
    "context mask type": (
        {"context": CONTEXT, "context_mask": vectors(2, 3)},
        "context_mask: got torch.float32",
        CROSS,
    ),
    "context mask alone": ({"context_mask": yes(2, 3)}, "given without context", {}),
    "context pos alone": ({"context_pos": numbers(3)}, "given without context", {}),
    "context pos without rotary": (
        {"context": CONTEXT, "context_pos": numbers(3)},
        "only rotary positions",
        CROSS,
    ),
    "context pos shape": (
        {"context": CONTEXT, "context_pos": numbers(4)},
        r"context_pos: .*\(3,\) or \(2, 3\)",
        {**CROSS, "rotary_pos_emb": True},
    ),
    "condition width": ({"condition": vectors(2, 32)}, r"\(2, 12\) or \(2, 6, 12\)", ADAPTIVE),
    "condition batch": ({"condition": vectors(1, 12)}, r"\(2, 12\) or \(2, 6, 12\)", ADAPTIVE),
    "condition widened": (
        {"condition": vectors(2, 48)},
        r"\(2, 12\) or \(2, 6, 12\)",
        {**ADAPTIVE, "adaptive_condition_mlp": True},
    ),
    "added width": ({"in_attn_cond": vectors(2, 31)}, "in_attn_cond: got", {}),
    "added for all": ({"in_attn_cond": vectors(32)}, "in_attn_cond: got", {}),
    "mems stacked": ({"mems": vectors(2, 2, 3, 32)}, "give a list with one tensor", {}),
    "mems number": ({"mems": [vectors(2, 3, 32)]}, "each of 2 self attentions", {}),
    "mems batch": ({"mems": [vectors(1, 3, 32)] * 2}, r"mems\[0\]: .*\(2, 3, 32\)", {}),
    "mems sizes": (
        {"mems": [vectors(2, 3, 32), vectors(2, 4, 32)]},
        r"mems\[1\]: .*\(2, 3, 32\)",
        {},
    ),
    "mem masks alone": ({"mem_masks": [yes(2, 3)] * 2}, "without mems", {}),
    "mem masks shape": (
        {"mems": [vectors(2, 3, 32)] * 2, "mem_masks": [yes(2, 4)] * 2},
        r"mem_masks\[0\]: .*\(2, 3\)",
        {},
    ),
    "kv no list": ({"self_attn_additional_kv": vectors(2, 4, 3, 8)}, "give a list", {}),
    "kv no pairs": ({"self_attn_additional_kv": [vectors(2, 4, 3, 8)]}, "pair", {}),
    "kv too many": ({"self_attn_additional_kv": [pair()] * 3}, "3 pairs for 2", {}),
    "kv batch": ({"self_attn_additional_kv": [pair(b=1)]}, r"keys: .*\(2, 4, 3, 8\)", {}),
    "kv heads": ({"self_attn_additional_kv": [pair(h=3)]}, r"keys: .*\(2, 4, 3, 8\)", {}),
    "kv channels": ({"self_attn_additional_kv": [pair(d=9)]}, r"keys: .*\(2, 4, 3, 8\)", {}),
    "kv polar": (
        {"self_attn_additional_kv": [pair()]},
        "polar positions",
        {"polar_pos_emb": True},
    ),
    "kv mask alone": ({"additional_kv_mask": yes(2, 3)}, "without self_attn_additional_kv", {}),
    "kv mask shape": (
        {"self_attn_additional_kv": [pair()], "additional_kv_mask": yes(2, 4)},
        r"additional_kv_mask: .*\(2, 3\)",
        {},
    ),
    "start shape": ({"seq_start_pos": numbers(3)}, r"seq_start_pos: .*\(2,\)", {}),
    "start type": ({"seq_start_pos": vectors(2)}, "seq_start_pos: got torch.float32", {}),
    "start beyond": ({"seq_start_pos": numbers(2) + 7}, "got 7; .* from 0 to 6", {}),
    "start before": ({"seq_start_pos": numbers(2) - 1}, "got -1; .* from 0 to 6", {}),
    "bool documents": ({"documents": yes(2, N)}, "documents: got torch.bool", {}),
    "bool pos": ({"pos": yes(2, N)}, "pos: got torch.bool", {}),
    "no blocks": ({"repeat_blocks": ()}, r"repeat_blocks: got \(\)", {}),
    "blocks as text": ({"repeat_blocks": ("a", 2)}, "repeat_blocks: got", {}),
    "no order": ({"layers_execute_order": ()}, r"layers_execute_order: got \(\)", {}),
    "blocks and LIMe": ({"repeat_blocks": (0, 2)}, "integrate_layers", {"integrate_layers": True}),
    "order and LIMe": (
        {"layers_execute_order": (0, 1, 0, 1)},
        "integrate_layers",
        {"integrate_layers": True},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_stack_names_what_it_can_not_take(name: str) -> None:
    given, message, options = WRONG[name]
    with pytest.raises(ValueError, match=message):
        Decoder(**SIZE, **options)(**{"x": vectors(2, N, 32), **given})


@pytest.mark.parametrize("prefix", [True, -1, 7, 2.0, numbers(3), numbers(2) + 7, vectors(2)])
def test_a_prefix_is_a_number_of_tokens(prefix: Any) -> None:
    with pytest.raises(ValueError, match="prefix_attn_len: got"):
        PrefixDecoder(**SIZE)(vectors(2, N, 32), prefix_attn_len=prefix)


def test_each_token_of_a_mask_for_samples_is_honoured_as_the_error_says() -> None:
    mask = yes(2, N, N).tril()
    assert Decoder(**SIZE)(vectors(2, N, 32), attn_mask=mask[:, None]).shape == (2, N, 32)


MODEL: dict[str, tuple[dict[str, Any], str]] = {
    "ids": ({"x": [[1, 2]]}, "x: got a list"),
    "bool position": ({"pos": yes(1, 4)}, "pos: got torch.bool"),
    "sum of integers": ({"sum_embeds": numbers(1, 4, 32)}, "sum_embeds: got torch.int64"),
    "sum no tensor": ({"sum_embeds": 1.0}, "sum_embeds: got a float"),
    "prepended integers": ({"prepend_embeds": numbers(1, 4, 32)}, "prepend_embeds: got"),
    "mems stacked": ({"mems": vectors(2, 1, 3, 32)}, "give a list"),
    "mems stacked, wanted": ({"mems": vectors(2, 1, 3, 32), "return_mems": True}, "give a list"),
    "mems batch": ({"mems": [vectors(2, 3, 32)] * 2}, r"\(1, 3, 32\)"),
    "rows as floats": ({"logit_rows": vectors(2)}, "logit_rows: got"),
    "rows as a mask": ({"logit_rows": yes(4)}, "logit_rows: got torch.bool"),
    "rows of two axes": ({"logit_rows": numbers(1, 4)}, "logit_rows: got"),
    "no such row": ({"logit_rows": torch.tensor([4])}, "got 4; .* from 0 to 3"),
    "rows with more": (
        {"logit_rows": numbers(1), "return_intermediates": True},
        "logit_rows: only without",
    ),
}


@pytest.mark.parametrize("name", MODEL)
def test_a_model_names_what_it_can_not_take(name: str) -> None:
    given, message = MODEL[name]
    with pytest.raises(ValueError, match=message):
        ours({"max_mem_len": 4})(**{"x": ids(1, 4), **given})
