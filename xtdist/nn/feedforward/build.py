"""From a config to its feed-forward layer."""

from __future__ import annotations

from xtdist.nn.feedforward.config import GLUConfig, MLPConfig, MoEConfig
from xtdist.nn.feedforward.dense import FeedForward
from xtdist.nn.feedforward.moe import MoE


def build_feedforward(
    dim: int, config: MLPConfig | GLUConfig | MoEConfig, *, init_gain: float = 1.0
) -> FeedForward | MoE:
    """The layer for vectors of ``dim``; ``init_gain`` multiplies the start values of its output.

    ``FeedForward`` maps x to a tensor; ``MoE`` (``config.has_aux``) maps x and a padding mask to
    ``MoEOutput(out, aux)``.
    """
    if isinstance(config, MoEConfig):
        return MoE(dim, config, init_gain=init_gain)
    return FeedForward(dim, config, init_gain=init_gain)
