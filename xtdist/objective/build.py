"""From an objective's config to the objective."""

from __future__ import annotations

from dataclasses import replace

import torch

from xtdist.config import ConfigError
from xtdist.model import ModelConfig, TransformerWrapper, build_model
from xtdist.nn.linear import initialize
from xtdist.objective.autoregressive import AutoregressiveWrapper
from xtdist.objective.base import Objective
from xtdist.objective.config import (
    AutoregressiveConfig,
    NonAutoregressiveConfig,
    ObjectiveConfig,
)
from xtdist.objective.nonautoregressive import NonAutoregressiveWrapper


def build_objective(
    config: ObjectiveConfig,
    net: TransformerWrapper,
    *,
    mask_id: int,
    pad_id: int,
    generator: torch.Generator | None = None,
) -> Objective:
    """``net`` wrapped for training; the ids are the tokenizer's: to predict next tokens, ``net``
    may lack a mask and a padding that stand behind all others. ``generator``: where the start
    values of an objective's own parameters come from (torch's default one without it). Documents
    are kept apart where ``prepare`` is given their numbers.

    Raises:
        ConfigError: a network of the wrong direction for this objective.
    """
    match config:
        case AutoregressiveConfig():
            size = net.num_tokens
            pad = pad_id if pad_id < size else 0  # what stands in for padding, and nothing reads
            mask = mask_id if mask_id < size else None
            return AutoregressiveWrapper(net, pad_value=pad, mask_id=mask, config=config)
        case NonAutoregressiveConfig():
            built = NonAutoregressiveWrapper(
                net,
                mask_id=mask_id,
                pad_id=pad_id,
                config=config,
                token_critic=_build_critic(config.token_critic, net),
            )
            if generator is not None:
                for part in built.own_modules:
                    initialize(part, generator)
            return built


def _build_critic(config: ModelConfig | None, net: TransformerWrapper) -> TransformerWrapper | None:
    """A network with one logit for each token; vocabulary and longest sequence are those of
    ``net``.

    Raises:
        ConfigError: the config is given others.
    """
    if config is None:
        return None
    given = config.num_tokens, config.max_seq_len, config.head.dim
    wanted = net.num_tokens, net.max_seq_len, 1
    names = "num_tokens", "max_seq_len", "head.dim"
    for name, value, want in zip(names, given, wanted, strict=True):
        if value not in (0, None, want):
            raise ConfigError(
                f"objective.token_critic.{name}: got {value}, but it has to be {want}: leave it out"
            )
    head = replace(config.head, dim=1)
    return build_model(
        replace(config, num_tokens=net.num_tokens, max_seq_len=net.max_seq_len, head=head)
    )
