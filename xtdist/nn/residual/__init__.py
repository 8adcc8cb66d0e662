"""How branches join the residual stream, and what stands between them."""

from xtdist.nn.residual.base import Residual
from xtdist.nn.residual.build import build_branch_scale, build_integrator, build_residual
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
from xtdist.nn.residual.dropout import keep_mask
from xtdist.nn.residual.skip import UNetSkip
from xtdist.nn.residual.streams import Streams

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
    "Residual",
    "ResidualConfig",
    "Streams",
    "UNetSkip",
    "build_branch_scale",
    "build_integrator",
    "build_residual",
    "keep_mask",
]
