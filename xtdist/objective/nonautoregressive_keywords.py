"""x-transformers' keywords of its NonAutoregressiveWrapper, as our config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from xtdist.config import ConfigError, from_mapping
from xtdist.objective.checks import unknown_keyword
from xtdist.objective.config import NonAutoregressiveConfig

KEYWORDS: dict[str, Any] = {
    "steps": 18,
    "self_cond": False,
    "self_cond_train_prob": 0.75,
    "no_replace_prob": 0.15,
    "random_token_prob": 0.1,
    "schedule": "linear",
    "can_mask_prev_unmasked": False,
    "self_token_critic": False,
    "critic_loss_weight": 1.0,
    "use_simple_mdlm_loss_weight": True,
}
"""Those that are numbers and names, and their defaults there."""
FIELDS = tuple(f.name for f in fields(NonAutoregressiveConfig) if f.name != "kind")


def keyword_config(keywords: Mapping[str, Any]) -> NonAutoregressiveConfig:
    """The config that ``keywords`` mean.

    Raises:
        TypeError: an unknown keyword, with the nearest one.
        ConfigError: a value that can't be.
    """
    known = tuple(dict.fromkeys((*KEYWORDS, *FIELDS)))
    for keyword in keywords:
        if keyword not in known:
            hint = unknown_keyword(keyword, known, of=NonAutoregressiveConfig)
            raise TypeError(f"NonAutoregressiveWrapper: unknown keyword {keyword!r}; {hint}")
    if {"weight", "use_simple_mdlm_loss_weight"} <= keywords.keys():
        raise ConfigError("weight, use_simple_mdlm_loss_weight: they say the same; leave one out")
    tree = {**KEYWORDS, **keywords}
    simple = tree.pop("use_simple_mdlm_loss_weight")
    if not isinstance(simple, bool):
        raise ConfigError(f"use_simple_mdlm_loss_weight: got {simple!r}; give True or False")
    tree.setdefault("weight", "elbo" if simple else "none")
    return from_mapping(NonAutoregressiveConfig, tree, where="NonAutoregressiveWrapper")
