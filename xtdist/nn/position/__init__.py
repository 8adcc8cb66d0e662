"""How a transformer knows where a token stands."""

from xtdist.nn.position.config import (
    AlibiConfig,
    CoPEConfig,
    DynamicConfig,
    ForgettingConfig,
    LearnedConfig,
    Llama3Config,
    NoPositionConfig,
    PolarConfig,
    RelativeProjectionConfig,
    RotaryConfig,
    SinusoidalConfig,
    T5Config,
    YarnConfig,
)

__all__ = [
    "AlibiConfig",
    "CoPEConfig",
    "DynamicConfig",
    "ForgettingConfig",
    "LearnedConfig",
    "Llama3Config",
    "NoPositionConfig",
    "PolarConfig",
    "RelativeProjectionConfig",
    "RotaryConfig",
    "SinusoidalConfig",
    "T5Config",
    "YarnConfig",
]
