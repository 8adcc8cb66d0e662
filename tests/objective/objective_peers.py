"""Networks of ours and of x-transformers with the same weights."""

from __future__ import annotations

from typing import Any

import torch
import x_transformers as xt

from xtdist.model import Decoder, TransformerWrapper
from xtdist.model.compat_weights import from_x_transformers
from xtdist.objective import AutoregressiveWrapper

LAYERS: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
SIZES: dict[str, Any] = {"num_tokens": 24, "max_seq_len": 40}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "learned": ({}, {}),
    "rotary": ({}, {"rotary_pos_emb": True, "attn_kv_heads": 2, "ff_glu": True}),
    "alibi": ({"tie_embedding": True}, {"alibi_pos_bias": True, "use_rmsnorm": True}),
    "memories": ({"num_memory_tokens": 2}, {"rotary_pos_emb": True}),
}


def both(variant: str = "rotary", seed: int = 3) -> tuple[AutoregressiveWrapper, Any]:
    """Ours and theirs with the same weights, far enough from their start values."""
    wrapper, layers = VARIANTS[variant]
    torch.manual_seed(seed)
    theirs = xt.TransformerWrapper(**SIZES, **wrapper, attn_layers=xt.Decoder(**LAYERS, **layers))
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    ours = TransformerWrapper(**SIZES, **wrapper, attn_layers=Decoder(**LAYERS, **layers))
    ours.load_state_dict(from_x_transformers(theirs.state_dict(), ours.config))
    return AutoregressiveWrapper(ours, pad_value=23), xt.AutoregressiveWrapper(theirs, pad_value=23)
