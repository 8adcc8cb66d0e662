"""Which models can be asked for tokens at all."""

from __future__ import annotations

from typing import Any

from xtdist.config import ConfigError


def check_predicts(model: Any, name: str) -> None:
    """Raises ConfigError for a model without one distribution for each token, or one that reads a
    condition."""
    head, pool = model.config.head, model.config.pool
    if head.output == "hidden":
        raise ConfigError(
            f"{name}: it has no head (return_only_embed, head.output=hidden), so it predicts no "
            "tokens; give it one"
        )
    if head.heads > 1:
        raise ConfigError(
            f"{name}: it has {head.heads} heads, and nothing says which one predicts the tokens; "
            "leave out num_output_heads (head.heads=1)"
        )
    if pool is not None and pool.kind != "attention":
        raise ConfigError(
            f"{name}: it has one output for the whole sequence (pool.kind={pool.kind}), not one "
            "for each token; leave the pooling out"
        )
    scale = model.config.branch_scale
    if model.config.norm.needs_condition or (scale is not None and scale.needs_condition):
        raise ConfigError(
            f"{name}: its adaptive norms read a condition, which a request can't carry; sample "
            "from it by its own forward pass"
        )
