"""How a branch's output joins the residual stream, and what stands between them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from xtdist.config import (
    ConfigError,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    configclass,
)


@configclass
class PlainResidualConfig:
    """stream + branch. ``learned_scale`` learns a factor for each channel of the stream
    (NormFormer), ``constant`` is a fixed one."""

    causal_safe: ClassVar[bool] = True
    streams: ClassVar[int] = 1
    kind: Literal["plain"] = "plain"
    learned_scale: bool = False
    constant: FiniteFloat = 1.0


@configclass
class GRUResidualConfig:
    """A GRU whose state is the stream and whose input is the branch (GTrXL, 1910.06764)."""

    causal_safe: ClassVar[bool] = True
    streams: ClassVar[int] = 1
    kind: Literal["gru"] = "gru"
    learned_scale: bool = False


@configclass
class OrthogonalResidualConfig:
    """Adds only the part of the branch that is orthogonal to the stream (2505.11881).

    ``over`` token: each token's vectors. ``over`` sequence: all of a sample's tokens as one vector
    (as x-transformers does), so that a token's result depends on later ones: bidirectional only.
    """

    streams: ClassVar[int] = 1
    kind: Literal["orthogonal"] = "orthogonal"
    learned_scale: bool = False
    over: Literal["token", "sequence"] = "token"

    @property
    def causal_safe(self) -> bool:
        """Whether a token's output depends on its past alone."""
        return self.over == "token"


@configclass
class MVSplitResidualConfig:
    """stream + β · (branch − mean) + α · (mean of branch − mean of stream), means over the sequence
    (2605.06169): bidirectional only. ``learned`` computes α and β from the branch's mean."""

    causal_safe: ClassVar[bool] = False
    streams: ClassVar[int] = 1
    kind: Literal["mv_split"] = "mv_split"
    init_alpha: FiniteFloat = 0.0
    init_beta: FiniteFloat = 0.03
    learned: bool = False


@configclass
class HyperResidualConfig:
    """Hyper-connections (2409.19606): ``streams`` residual streams, read from, mixed and written
    to with weights that depend on the token.

    ``mixing`` sinkhorn makes the mix of the streams doubly stochastic by ``sinkhorn_iters`` rounds
    (manifold-constrained, 2512.24880). ``mixing`` sum gives every stream the sum of all, which is
    what x-transformers 2.31 computes; it exists to run weights trained there. ``qkv_views`` lets
    queries, keys and values read different mixes.
    """

    causal_safe: ClassVar[bool] = True
    kind: Literal["hyper"] = "hyper"
    streams: PositiveInt = 4
    sinkhorn_iters: NonNegativeInt = 5
    mixing: Literal["sinkhorn", "sum"] = "sinkhorn"
    qkv_views: bool = False

    def __post_init__(self) -> None:
        if self.streams < 2:
            raise ConfigError(
                f"residual.streams: got {self.streams}; hyper-connections mix at least 2 streams "
                "(for one, use kind: plain)"
            )


@configclass
class GatedMultiResidualConfig:
    """``streams`` residual streams with an elementwise low-rank read gate and a write gate for each
    stream. The read gate normalizes, so the layer's pre-norm is left out. ``qkv_views`` lets
    queries, keys and values read through different gates."""

    causal_safe: ClassVar[bool] = True
    kind: Literal["gated_multi"] = "gated_multi"
    streams: PositiveInt = 4
    read_gate_rank: PositiveInt = 64
    qkv_views: bool = False


ResidualConfig = Annotated[
    PlainResidualConfig
    | GRUResidualConfig
    | OrthogonalResidualConfig
    | MVSplitResidualConfig
    | HyperResidualConfig
    | GatedMultiResidualConfig,
    Field(discriminator="kind"),
]


@configclass
class ConstantScaleConfig:
    """branch · ``value``."""

    needs_condition: ClassVar[bool] = False
    kind: Literal["constant"] = "constant"
    value: FiniteFloat = 1.0


@configclass
class LayerScaleConfig:
    """branch · gain with a learned gain for each channel (CaiT, 2103.17239).

    ``unit_offset`` stores the gain minus one."""

    needs_condition: ClassVar[bool] = False
    kind: Literal["layerscale"] = "layerscale"
    init_value: FiniteFloat = 0.0
    unit_offset: bool = False


@configclass
class AdaptiveLayerScaleConfig:
    """branch · σ(W condition + b) (DiT, 2212.09748). ``dim_condition`` null = the model's dim."""

    needs_condition: ClassVar[bool] = True
    kind: Literal["adaptive_layerscale"] = "adaptive_layerscale"
    dim_condition: PositiveInt | None = None
    init_bias: FiniteFloat = -2.0


BranchScaleConfig = Annotated[
    ConstantScaleConfig | LayerScaleConfig | AdaptiveLayerScaleConfig, Field(discriminator="kind")
]


@configclass
class LIMeConfig:
    """A layer's input is a learned mix of all earlier inputs, weighted from the current one (LIMe,
    2502.09245). ``weights`` softmax or relu."""

    kind: Literal["lime"] = "lime"
    weights: Literal["softmax", "relu"] = "softmax"
    eps: PositiveFloat = 1e-6


@configclass
class AttentionResidualConfig:
    """A layer's input is attention over all earlier inputs of the same token (2601.21582,
    2603.15031); the query is the latest input plus a map of it of rank ``rank``."""

    kind: Literal["attention"] = "attention"
    rank: PositiveInt = 64
    activation: Literal["none", "gelu", "silu", "relu"] = "none"


IntegratorConfig = Annotated[LIMeConfig | AttentionResidualConfig, Field(discriminator="kind")]
