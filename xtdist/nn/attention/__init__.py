"""Attention: project → norm q, k → rotate → cache or backend → out."""

from xtdist.nn.attention.config import (
    AttentionConfig,
    CosineConfig,
    GateConfig,
    GumbelConfig,
    HardConfig,
    LatentConfig,
    SigmoidConfig,
    SignedConfig,
    SoftmaxConfig,
    TopKConfig,
)

__all__ = [
    "AttentionConfig",
    "CosineConfig",
    "GateConfig",
    "GumbelConfig",
    "HardConfig",
    "LatentConfig",
    "SigmoidConfig",
    "SignedConfig",
    "SoftmaxConfig",
    "TopKConfig",
]
