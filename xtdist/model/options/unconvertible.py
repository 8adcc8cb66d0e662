"""Where weights can't be converted because query heads share keys and values."""

from __future__ import annotations

from typing import Any

from xtdist.model.options.weights import Refused


def key_heads(config: Any) -> int:
    """Heads of keys and values of self attention."""
    return int(config.attention.kv_heads or config.heads)


def mixes_shared_values(config: Any) -> bool:
    """Learned mixing (in all but the first self attention) of values that query heads share."""
    mixes = config.value_residual.learned and config.kinds.count("a") > 1
    return bool(mixes and key_heads(config) != config.heads)


def shares_some_keys(config: Any) -> bool:
    """Fewer heads of keys than query heads, but several."""
    return 1 < key_heads(config) < config.heads


def shares_one_key(config: Any) -> bool:
    """One head of keys for several query heads."""
    return key_heads(config) == 1 < config.heads


VALUE_MIX = Refused(
    mixes_shared_values,
    "x-transformers can't run this either: it mixes by one number per query head, and its values "
    "have fewer heads; drop attn_kv_heads, or set learned_value_residual_mix=False",
)
POLAR = (
    Refused(
        shares_some_keys,
        "x-transformers can't run this either: it turns keys by one angle per query head, and has "
        "fewer heads of keys; drop attn_kv_heads",
    ),
    Refused(
        shares_one_key,
        "x-transformers turns its one head of keys by another angle for each query head; xtdist "
        "by one angle per head of keys; drop attn_kv_heads",
    ),
)
