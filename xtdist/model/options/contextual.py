"""Options of one attention layer that place tokens by what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xtdist.model.options.base import EAGER, SKIP, Backend, Option, Row, Sample
from xtdist.model.options.weights import Context, Derived, Heads, Refused, Rule, Shape

GATES = "data_dependent_alibi.to_forget_gates.0"
OURS = "pair_bias.forgetting.to_gates"
TABLES: frozenset[Backend] = frozenset({"sdpa", "eager"})
"""Backends that take a table of biases."""


def entry(kwargs: Mapping[str, Any], given: Mapping[str, Any], *, name: str) -> Any:
    """One of ``attn_data_dependent_alibi_kwargs``."""
    return kwargs.get(name, SKIP)


def entry_back(value: Any, tree: Mapping[str, Any], *, name: str, default: float) -> Any:
    """The way back."""
    return SKIP if value == default else {name: value}


def positions(context: Context) -> Tensor:
    """Its buffer of whole positions."""
    return torch.arange(context.attention.cope.max_pos)


def alibi_entry(place: str, name: str, default: float) -> Row:
    """The row of one entry of the dictionary."""
    return Row(
        "attn_data_dependent_alibi_kwargs",
        f"attention.forgetting.{place}",
        {},
        into=partial(entry, name=name),
        back=partial(entry_back, name=name, default=default),
        self_only=True,
    )


OPTIONS: tuple[Option, ...] = (
    Option(
        name="CoPE",
        about="positions count what the query finds",
        active="attention.cope",
        paper="2405.18719",
        tier=3,
        rows=(
            Row("attn_use_cope", "attention.cope", False, {False: None, True: {}}, self_only=True),
            Row(
                "attn_cope_max_pos",
                "attention.cope.max_pos",
                16,
                needs="attn_use_cope",
                self_only=True,
            ),
            Row(
                "attn_cope_soft_onehot_pos",
                "attention.cope.soft_onehot",
                False,
                needs="attn_use_cope",
                self_only=True,
            ),
            Row(
                "attn_cope_talking_heads",
                "attention.cope.talking_heads",
                False,
                needs="attn_use_cope",
                self_only=True,
            ),
        ),
        samples=(
            Sample({"attn_use_cope": True, "attn_cope_max_pos": 4, "attn_kv_heads": 2}),
            Sample({"attn_use_cope": True, "attn_cope_talking_heads": True}),
            Sample(
                {"attn_use_cope": True, "attn_cope_soft_onehot_pos": True},
                broken="its table of positions has too few axes",
            ),
        ),
        weights=(
            Rule("attention", "attend.cope.pos_emb", "score_mods.cope.embedding"),
            Rule(
                "attention",
                "attend.cope.talking_heads.weight",
                "score_mods.cope.talking_heads.weight",
                (Shape("a b 1 1", "a b"), Heads(0), Heads(1)),
            ),
            Refused(
                "cross_attention",
                "x-transformers can't build this: it puts CoPE into cross attention too, where it "
                "refuses it; drop cross_attend or attn_use_cope",
            ),
        ),
        backends=EAGER,
        causal="causal only",
    ),
    Option(
        name="CoPE by nearness",
        about="fractional positions weigh all vectors",
        active="attention.cope.soft_onehot",
        paper="2405.18719",
        tier=3,
        weights=(Derived("attention", "attend.cope.positions", positions),),
    ),
    Option(
        name="forgetting attention",
        about="learned gates fade keys along the sequence",
        active="attention.forgetting",
        paper="openreview q2Lnyegkr8",
        tier=3,
        rows=(
            Row(
                "attn_data_dependent_alibi",
                "attention.forgetting",
                False,
                {False: None, True: {}},
                self_only=True,
            ),
            Row(
                "attn_data_dependent_alibi_per_row",
                "attention.forgetting.per_row",
                False,
                needs="attn_data_dependent_alibi",
                self_only=True,
            ),
            Row(
                "attn_data_dependent_alibi_per_row_dim_head",
                "attention.forgetting.dim_head",
                8,
                needs="attn_data_dependent_alibi",
                self_only=True,
            ),
            alibi_entry("bias_init", "bias_init", 5.0),
            alibi_entry("log_scale", "post_log_scale", 1.0),
        ),
        samples=(
            Sample({"attn_data_dependent_alibi": True, "attn_kv_heads": 2}),
            Sample(
                {
                    "attn_data_dependent_alibi": True,
                    "attn_data_dependent_alibi_kwargs": {"post_log_scale": 0.5},
                }
            ),
            Sample(
                {
                    "attn_data_dependent_alibi": True,
                    "attn_data_dependent_alibi_per_row": True,
                    "attn_data_dependent_alibi_per_row_dim_head": 4,
                    "attn_kv_heads": 2,
                }
            ),
        ),
        weights=(
            Rule("attention", f"{GATES}.weight", f"{OURS}.weight", (Heads(0),), "causal=True"),
            Rule("attention", f"{GATES}.bias", f"{OURS}.bias", (Heads(0),), "causal=True"),
            Rule("attention", f"{GATES}.weight", f"{OURS}.weight", (Heads(0, 2),), "causal=False"),
            Rule("attention", f"{GATES}.bias", f"{OURS}.bias", (Heads(0, 2),), "causal=False"),
            Refused(
                "cross_attention",
                "x-transformers applies attn_data_dependent_alibi to cross attention too, with "
                "weights of its own; xtdist doesn't",
            ),
        ),
        backends=TABLES,
        differs="cached exactly (there: gates of the new token alone); added to a dynamic position "
        "bias, which it replaces there; of self attention alone",
    ),
    Option(
        name="forgetting by row",
        about="each query decides what it forgets",
        active="attention.forgetting.per_row",
        paper="openreview q2Lnyegkr8",
        tier=3,
        weights=(Rule("attention", f"{GATES}.weight", f"{OURS}.weight", (Heads(0, 2),)),),
        causal="causal only",
    ),
    Option(
        name="relative projection",
        about="each query draws its own curve over distances",
        active="attention.relative_projection",
        tier=3,
        rows=(
            Row(
                "attn_use_rel_proj_pos_bias",
                "attention.relative_projection",
                False,
                {False: None, True: {}},
                self_only=True,
            ),
            Row(
                "attn_rel_proj_num_distance_basis",
                "attention.relative_projection.basis",
                16,
                needs="attn_use_rel_proj_pos_bias",
                self_only=True,
            ),
            Row(
                "attn_rel_proj_max_dist",
                "attention.relative_projection.max_distance",
                1024,
                needs="attn_use_rel_proj_pos_bias",
                self_only=True,
            ),
        ),
        samples=(
            Sample(
                {
                    "attn_use_rel_proj_pos_bias": True,
                    "attn_rel_proj_num_distance_basis": 4,
                    "attn_rel_proj_max_dist": 6,
                    "attn_kv_heads": 2,
                }
            ),
        ),
        weights=(
            Rule(
                "attention",
                "rel_proj_pos_bias.to_distance_weights.0.weight",
                "pair_bias.relative.to_weights.weight",
                (Heads(0),),
            ),
            Rule(
                "attention",
                "rel_proj_pos_bias.to_distance_weights.0.bias",
                "pair_bias.relative.to_weights.bias",
                (Heads(0),),
            ),
            Rule("attention", "rel_proj_pos_bias.distance_bank", "pair_bias.relative.bank"),
            Refused(
                "cross_attention",
                "x-transformers applies attn_use_rel_proj_pos_bias to cross attention too, with "
                "weights of its own; xtdist doesn't",
            ),
        ),
        backends=TABLES,
        differs="works beside memory keys (there: a shape error)",
    ),
)
