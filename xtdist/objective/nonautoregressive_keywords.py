"""x-transformers' keywords of its NonAutoregressiveWrapper, as our config."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from xtdist.config import from_mapping
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


def keyword_config(keywords: Mapping[str, Any]) -> NonAutoregressiveConfig:
    """The config that ``keywords`` mean.

    Raises:
        TypeError: an unknown keyword, with the nearest one.
        ConfigError: a value that can't be.
    """
    for keyword in keywords:
        if keyword not in KEYWORDS:
            near = difflib.get_close_matches(keyword, KEYWORDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(KEYWORDS)}"
            raise TypeError(f"NonAutoregressiveWrapper: unknown keyword {keyword!r}; {hint}")
    tree = {**KEYWORDS, **keywords}
    tree["weight"] = "elbo" if tree.pop("use_simple_mdlm_loss_weight") else "none"
    return from_mapping(NonAutoregressiveConfig, tree, where="NonAutoregressiveWrapper")
