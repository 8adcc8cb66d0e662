"""From configs to residual policies, branch scales and layer integrators."""

from __future__ import annotations

from xtdist.nn.residual.base import Residual
from xtdist.nn.residual.config import (
    AdaptiveLayerScaleConfig,
    ConstantScaleConfig,
    GatedMultiResidualConfig,
    GRUResidualConfig,
    HyperResidualConfig,
    IntegratorConfig,
    LayerScaleConfig,
    LIMeConfig,
    MVSplitResidualConfig,
    OrthogonalResidualConfig,
    ResidualConfig,
)
from xtdist.nn.residual.gated_multi import GatedMultiResidual
from xtdist.nn.residual.gru import GRUResidual
from xtdist.nn.residual.hyper import HyperResidual
from xtdist.nn.residual.integrate import AttentionResidual, LIMe
from xtdist.nn.residual.mv_split import MVSplitResidual
from xtdist.nn.residual.orthogonal import OrthogonalResidual
from xtdist.nn.residual.plain import PlainResidual
from xtdist.nn.residual.scale import AdaptiveLayerScale, ConstantScale, LayerScale


def build_residual(dim: int, config: ResidualConfig, *, layer: int, views: int = 1) -> Residual:
    """The policy of sublayer ``layer`` (counted through the stack). ``views`` 3 gives queries, keys
    and values inputs of their own; policies with one stream have only one view."""
    match config:
        case HyperResidualConfig():
            return HyperResidual(dim, config, layer=layer, views=views)
        case GatedMultiResidualConfig():
            return GatedMultiResidual(dim, config, layer=layer, views=views)
    assert views == 1, f"a {config.kind} residual has one view"
    match config:
        case GRUResidualConfig():
            return GRUResidual(dim, config)
        case OrthogonalResidualConfig():
            return OrthogonalResidual(dim, config)
        case MVSplitResidualConfig():
            return MVSplitResidual(dim, config)
    return PlainResidual(dim, config)


def build_branch_scale(
    dim: int, config: ConstantScaleConfig | LayerScaleConfig | AdaptiveLayerScaleConfig
) -> ConstantScale | LayerScale | AdaptiveLayerScale:
    """The factor on a branch's output; those with ``needs_condition`` take (branch, condition)."""
    match config:
        case LayerScaleConfig():
            return LayerScale(dim, config)
        case AdaptiveLayerScaleConfig():
            return AdaptiveLayerScale(dim, config)
    return ConstantScale(config)


def build_integrator(
    dim: int, config: IntegratorConfig, *, layers: int, views: int = 1
) -> LIMe | AttentionResidual:
    """What makes a layer's input from the inputs of the ``layers`` so far, its own included."""
    if isinstance(config, LIMeConfig):
        return LIMe(dim, config, layers=layers, views=views)
    return AttentionResidual(dim, config, views=views)
