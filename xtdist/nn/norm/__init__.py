"""Norms over the last dimension. A config builds its module: ``config.build(dim)``.

Modules with ``needs_condition`` are called with ``(x, condition)``, all others with ``(x)``.
"""

from xtdist.nn.norm.adaptive import (
    AdaptiveLayerNorm,
    AdaptiveLayerNormConfig,
    AdaptiveRMSNorm,
    AdaptiveRMSNormConfig,
)
from xtdist.nn.norm.config import NormConfig
from xtdist.nn.norm.plain import (
    LayerNorm,
    LayerNormConfig,
    RMSNorm,
    RMSNormConfig,
    ScaleNorm,
    ScaleNormConfig,
    SimpleRMSNorm,
    SimpleRMSNormConfig,
)
from xtdist.nn.norm.saturating import Derf, DerfConfig, DynamicTanh, DynamicTanhConfig

__all__ = [
    "AdaptiveLayerNorm",
    "AdaptiveLayerNormConfig",
    "AdaptiveRMSNorm",
    "AdaptiveRMSNormConfig",
    "Derf",
    "DerfConfig",
    "DynamicTanh",
    "DynamicTanhConfig",
    "LayerNorm",
    "LayerNormConfig",
    "NormConfig",
    "RMSNorm",
    "RMSNormConfig",
    "ScaleNorm",
    "ScaleNormConfig",
    "SimpleRMSNorm",
    "SimpleRMSNormConfig",
]
