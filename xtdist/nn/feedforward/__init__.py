"""The position-wise feed-forward layer: MLP, gated variants, mixture of experts."""

from xtdist.nn.feedforward.build import build_feedforward
from xtdist.nn.feedforward.config import (
    Activation,
    ExpertConfig,
    FeedForwardConfig,
    GLUConfig,
    MLPConfig,
    MoEConfig,
    inner_dim,
)
from xtdist.nn.feedforward.dense import FeedForward
from xtdist.nn.feedforward.moe import MoE, MoEOutput

__all__ = [
    "Activation",
    "ExpertConfig",
    "FeedForward",
    "FeedForwardConfig",
    "GLUConfig",
    "MLPConfig",
    "MoE",
    "MoEConfig",
    "MoEOutput",
    "build_feedforward",
    "inner_dim",
]
