"""How branches join the residual stream."""

from xtdist.nn.residual.config import (
    AdaptiveLayerScaleConfig,
    AttentionResidualConfig,
    BranchScaleConfig,
    ConstantScaleConfig,
    GatedMultiResidualConfig,
    GRUResidualConfig,
    HyperResidualConfig,
    IntegratorConfig,
    LayerScaleConfig,
    LIMeConfig,
    MVSplitResidualConfig,
    OrthogonalResidualConfig,
    PlainResidualConfig,
    ResidualConfig,
)

__all__ = [
    "AdaptiveLayerScaleConfig",
    "AttentionResidualConfig",
    "BranchScaleConfig",
    "ConstantScaleConfig",
    "GRUResidualConfig",
    "GatedMultiResidualConfig",
    "HyperResidualConfig",
    "IntegratorConfig",
    "LIMeConfig",
    "LayerScaleConfig",
    "MVSplitResidualConfig",
    "OrthogonalResidualConfig",
    "PlainResidualConfig",
    "ResidualConfig",
]
