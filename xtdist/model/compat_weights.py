"""x-transformers' weights in our layout: the same logits from the same numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor

from xtdist.config import CheckpointError
from xtdist.model.config import ModelConfig

NAMES: tuple[tuple[str, str], ...] = (
    (r"token_emb\.emb\.weight", "token_embedding.weight"),
    (r"pos_emb\.emb\.weight", "position_embedding.weight"),
    (r"to_logits\.weight", "head.weight"),
    (r"attn_layers\.final_norm\.(?:gamma|g)", "layers.final_norm.gain"),
    (r"attn_layers\.layers\.(\d+)\.0\.0\.(?:gamma|g)", "layers.blocks.{i}.{part}_norm.gain"),
    (r"attn_layers\.layers\.(\d+)\.1\.to_(q|k|v|out)\.weight", "layers.blocks.{i}.attention.{x}"),
    (r"attn_layers\.layers\.(\d+)\.1\.([qk])_rmsnorm\.gamma", "layers.blocks.{i}.attention.{x}_n"),
    (
        r"attn_layers\.layers\.(\d+)\.1\.ff\.0\.(?:0|proj)\.(weight|bias)",
        "layers.blocks.{i}.feedforward.proj_in.{x}",
    ),
    (
        r"attn_layers\.layers\.(\d+)\.1\.ff\.2\.(weight|bias)",
        "layers.blocks.{i}.feedforward.proj_out.{x}",
    ),
)
"""Their name → ours. Layers alternate there: 2i is attention, 2i + 1 feed-forward of block i."""

DERIVED = re.compile(r"attn_layers\.rotary_pos_emb\.inv_freq")
"""A buffer there that is computed here."""


def from_x_transformers(theirs: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The state dict of ``build_model(config)`` from that of an x-transformers TransformerWrapper
    with the same keywords.

    Query heads are reordered where they share keys: there, head i reads key/value head
    i mod kv_heads; here, i // (heads // kv_heads). Learned positions are scaled there, not here.

    Raises:
        CheckpointError: weights of an option that the config does not have.
    """
    named = {_our_name(name): weight for name, weight in theirs.items() if not DERIVED.match(name)}
    ours = {name: w for name, w in named.items() if not _is_part(name)}
    if "position_embedding.weight" in ours:
        ours["position_embedding.weight"] = ours["position_embedding.weight"] * config.dim**-0.5
    for i in range(config.depth):
        ours |= _attention(named, f"layers.blocks.{i}.attention.", config)
    return ours


def _our_name(name: str) -> str:
    for pattern, target in NAMES:
        found = re.fullmatch(pattern, name)
        if found is None:
            continue
        layer, x = (*found.groups(), "0", "")[:2]
        part = "feedforward" if int(layer) % 2 else "attention"
        return target.format(i=int(layer) // 2, part=part, x=x)
    raise CheckpointError(f"{name}: the weight of an x-transformers option that xtdist lacks")


def _is_part(name: str) -> bool:
    return re.fullmatch(r".*\.attention\.(q|k|v|out|q_n|k_n)", name) is not None


def _attention(named: Mapping[str, Tensor], prefix: str, config: ModelConfig) -> dict[str, Tensor]:
    """One attention layer: q, k, v in one matrix, query heads in the order of their keys."""
    sizes = {"hk": config.attention.kv_heads or config.heads, "d": config.attention.dim_head}
    try:
        q = rearrange(named[f"{prefix}q"], "(g hk d) m -> (hk g d) m", **sizes)
        ours = {
            f"{prefix}to_qkv.weight": torch.cat([q, named[f"{prefix}k"], named[f"{prefix}v"]]),
            f"{prefix}to_out.weight": rearrange(
                named[f"{prefix}out"], "m (g hk d) -> m (hk g d)", **sizes
            ),
        }
        if config.attention.qk_rmsnorm:
            gain = rearrange(named[f"{prefix}q_n"], "(g hk) 1 d -> (hk g) 1 d", **sizes)
            ours[f"{prefix}query_norm.gain"] = gain
            ours[f"{prefix}key_norm.gain"] = named[f"{prefix}k_n"]
    except KeyError as e:
        raise CheckpointError(f"no weight for {e.args[0]}: of another model") from None
    return ours
