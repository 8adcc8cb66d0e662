"""Which models predict tokens, from which inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from xtdist.config import ConfigError
from xtdist.model.config import ModelConfig

BESIDE = ("condition", "context", "prefix_attn_len", "embed_ids")
"""Inputs beside the tokens that models of some configs need."""


def check_predicts_tokens(
    config: ModelConfig, *, name: str, given: Collection[str] = BESIDE
) -> None:
    """Refuse a model without one distribution for each token, or one that needs an input that its
    user can't give: beside tokens, that is what ``given`` says (of ``BESIDE``).

    Raises:
        ConfigError: no head, several heads, one output for the whole sequence; or such an input,
            with the place in the config that needs it.
    """
    head, pool = config.head, config.pool
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
    for needed, place in _needs(config):
        if needed not in given:
            raise ConfigError(
                f"{name}: {place} needs {needed}= in each forward pass, and nothing here gives it; "
                "leave it out, or call the network's own forward pass"
            )


def _needs(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Inputs beside the tokens, with the places that need them."""
    scale = config.branch_scale
    if config.norm.needs_condition:
        yield "condition", f"norm.kind={config.norm.kind}"
    if scale is not None and scale.needs_condition:
        yield "condition", f"branch_scale.kind={scale.kind}"
    if config.cross_attention is not None:
        yield "context", "cross_attention"
    if config.prefix:
        yield "prefix_attn_len", "prefix=true"
    if config.embedding.tables:
        yield "embed_ids", "embedding.tables"
