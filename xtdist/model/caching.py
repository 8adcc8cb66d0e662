"""What a model leaves behind for each token when it is decoded with a cache."""

from __future__ import annotations

from xtdist.model.config import LayersConfig
from xtdist.model.options.resolver import cache_refused
from xtdist.nn.attention.cache import CacheSpec
from xtdist.nn.attention.latent import keeps_latent
from xtdist.nn.attention.projection import HeadSizes


def cache_spec(config: LayersConfig) -> CacheSpec:
    """The shape of a cache for the stack of ``config``, or why it can't have one."""
    kinds = [config.kinds[i] for i in config.execution]
    attentions = [kind for kind in kinds if kind != "f"]
    window = config.attention.window if attentions and "c" not in attentions else None
    return CacheSpec(
        layers=tuple(() if kind == "c" else _kept(config) for kind in attentions),
        window=window if config.causal else None,
        refused=cache_refused(config),
    )


def _kept(config: LayersConfig) -> tuple[tuple[int, int], ...]:
    """(heads, channels) of each tensor that a self attention keeps."""
    attention, sizes = config.attention, HeadSizes.of(config.heads, config.attention)
    if keeps_latent(attention):
        assert attention.latent is not None
        latent = attention.latent
        kept = [(1, latent.kv_dim or 0), (latent.rotary_heads or 0, sizes.dim)]
    else:
        turned = 2 if config.position.kind == "polar" else 1
        kept = [(sizes.kv_heads, sizes.dim * turned), (sizes.kv_heads, sizes.value_dim)]
    forgetting = attention.forgetting
    if forgetting is not None:
        kept.append((config.heads, forgetting.dim_head if forgetting.per_row else 1))
    return tuple(kept)
