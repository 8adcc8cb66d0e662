"""What a model is trained for: losses as (sum, weight), and the public wrappers."""

from xtdist.objective.autoregressive import AutoregressiveWrapper
from xtdist.objective.base import LossOutput, Objective, Prepared
from xtdist.objective.build import build_objective
from xtdist.objective.config import (
    AutoregressiveConfig,
    NonAutoregressiveConfig,
    ObjectiveConfig,
)
from xtdist.objective.continuous import ContinuousAutoregressiveWrapper
from xtdist.objective.nonautoregressive import Losses, NonAutoregressiveWrapper
from xtdist.objective.xtransformer import XTransformer

__all__ = [
    "AutoregressiveConfig",
    "AutoregressiveWrapper",
    "ContinuousAutoregressiveWrapper",
    "LossOutput",
    "Losses",
    "NonAutoregressiveConfig",
    "NonAutoregressiveWrapper",
    "Objective",
    "ObjectiveConfig",
    "Prepared",
    "XTransformer",
    "build_objective",
]
