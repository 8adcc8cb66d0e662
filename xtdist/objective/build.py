"""From an objective's config to the objective."""

from __future__ import annotations

from xtdist.model import TransformerWrapper
from xtdist.objective.autoregressive import AutoregressiveWrapper
from xtdist.objective.base import Objective
from xtdist.objective.config import (
    AutoregressiveConfig,
    NonAutoregressiveConfig,
    ObjectiveConfig,
)
from xtdist.objective.nonautoregressive import NonAutoregressiveWrapper


def build_objective(
    config: ObjectiveConfig, net: TransformerWrapper, *, mask_id: int, pad_id: int
) -> Objective:
    """``net`` wrapped for training.

    Raises:
        ConfigError: a network of the wrong direction for this objective.
    """
    match config:
        case AutoregressiveConfig():
            return AutoregressiveWrapper(net, ignore_index=config.ignore_index, pad_value=pad_id)
        case NonAutoregressiveConfig():
            return NonAutoregressiveWrapper(net, mask_id=mask_id, pad_id=pad_id, config=config)
