"""The choice of a norm."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from xtdist.nn.norm.adaptive import AdaptiveLayerNormConfig, AdaptiveRMSNormConfig
from xtdist.nn.norm.plain import (
    LayerNormConfig,
    RMSNormConfig,
    ScaleNormConfig,
    SimpleRMSNormConfig,
)
from xtdist.nn.norm.saturating import DerfConfig, DynamicTanhConfig

NormConfig = Annotated[
    LayerNormConfig
    | RMSNormConfig
    | SimpleRMSNormConfig
    | ScaleNormConfig
    | DynamicTanhConfig
    | DerfConfig
    | AdaptiveLayerNormConfig
    | AdaptiveRMSNormConfig,
    Field(discriminator="kind"),
]
