"""How tokens are placed. All position configs can be imported from here."""

from __future__ import annotations

from typing import Annotated, Literal

from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from xtdist.config import ConfigError, PositiveFloat, PositiveInt, configclass
from xtdist.nn.position.bias import (
    AlibiConfig,
    DynamicConfig,
    PositionBias,
    PositionBiasConfig,
    T5Config,
)
from xtdist.nn.position.geometry import PositionGeometry
from xtdist.nn.position.learned import LearnedPosition
from xtdist.nn.position.parts import CoPEConfig, ForgettingConfig, RelativeProjectionConfig
from xtdist.nn.position.polar import PolarPosition
from xtdist.nn.position.rotary import RotaryTables, rotary_tables
from xtdist.nn.position.scaling import Llama3Config, RopeScaling, YarnConfig
from xtdist.nn.position.sinusoidal import SinusoidalPosition

__all__ = [
    "AlibiConfig",
    "CoPEConfig",
    "DynamicConfig",
    "ForgettingConfig",
    "LearnedConfig",
    "Llama3Config",
    "NoPositionConfig",
    "PolarConfig",
    "PositionBias",
    "PositionBiasConfig",
    "PositionConfig",
    "PositionGeometry",
    "RelativeProjectionConfig",
    "RopeScaling",
    "RotaryConfig",
    "SinusoidalConfig",
    "T5Config",
    "YarnConfig",
]


@configclass
class RotaryConfig:
    """Rotary positions (RoPE, 2104.09864) on queries and keys.

    ``dim`` leading channels of each head are rotated; null = the whole head. ``layout`` says which
    channels form a pair: neighbours, or channel i of either half (Llama on Hugging Face).
    ``heads``: only so many of the last heads are rotated; null = all.
    ``interpolation`` divides every position (2306.15595), ``theta_rescale`` multiplies theta by its
    dim/(dim − 2)-th power (NTK-aware), ``scaling`` treats wavelengths unequally.
    ``xpos_scale_base`` lets scores decay with distance (xPos, 2212.10554; causal only; upstream's
    value is 512). Its exponents are counted from the middle of the positions of a forward pass,
    with a cache from ``xpos_centre``; no score depends on that. Positions more than 55 times the
    base away from it are an error, and in fp16 more than 4 times.
    """

    kind: Literal["rotary"] = "rotary"
    theta: PositiveFloat = 10000.0
    dim: PositiveInt | None = None
    layout: Literal["interleaved", "halves"] = "interleaved"
    heads: PositiveInt | None = None
    interpolation: PositiveFloat = 1.0
    theta_rescale: PositiveFloat = 1.0
    scaling: RopeScaling | None = None
    xpos_scale_base: PositiveInt | None = None
    xpos_centre: int = 0

    def __post_init__(self) -> None:
        if self.dim is not None and self.dim % 2:
            raise ConfigError(
                f"position.dim: {self.dim} channels can't be rotated in pairs; give an even number"
            )
        if self.interpolation < 1:
            raise ConfigError(
                f"position.interpolation: got {self.interpolation}; give the factor by which the "
                "context grows, 1 or more"
            )
        if self.scaling is not None and (self.interpolation != 1 or self.theta_rescale != 1):
            raise ConfigError(
                f"position.scaling: {self.scaling.kind} already decides every wavelength; leave "
                f"interpolation (got {self.interpolation}) and theta_rescale (got "
                f"{self.theta_rescale}) at 1"
            )
        if self.theta_rescale != 1 and self.dim == 2:
            raise ConfigError(
                "position.theta_rescale: the rescaling rule has no value for dim=2; set theta"
            )
        if isinstance(self.scaling, YarnConfig) and self.theta <= 1:
            raise ConfigError(f"position.theta: got {self.theta}; yarn needs a theta above 1")

    def tables(
        self,
        pos: Int[Tensor, "b n"],
        *,
        dim_head: int,
        around: Int[Tensor, "b m"] | None = None,
    ) -> RotaryTables:
        """The turn of queries and of keys at ``pos``, for heads of ``dim_head`` channels.
        ``around``: the positions that all queries and keys of a forward pass lie around, None = of
        some that are not known yet."""
        return rotary_tables(pos, self, dim_head=dim_head, around=around)


@configclass
class PolarConfig:
    """Polar positions (PoPE, 2509.10534): content is the magnitude, position the angle.

    Queries and keys get twice the channels. ``uniform_bias`` starts the learned angle of each
    channel anywhere in [−2π, 0] instead of at 0.
    """

    kind: Literal["polar"] = "polar"
    theta: PositiveFloat = 10000.0
    uniform_bias: bool = False

    def build(self, geometry: PositionGeometry) -> PolarPosition:
        """The module, shared by all layers."""
        return PolarPosition(
            geometry.dim_head,
            kv_heads=geometry.kv_heads,
            theta=self.theta,
            uniform_bias=self.uniform_bias,
        )


@configclass
class LearnedConfig:
    """One learned vector for each of ``max_seq_len`` positions, added to the token embedding."""

    kind: Literal["learned"] = "learned"

    def build(self, max_seq_len: int, dim: int) -> LearnedPosition:
        """The module for positions below ``max_seq_len``."""
        return LearnedPosition(max_seq_len, dim)


@configclass
class SinusoidalConfig:
    """Sines and cosines (1706.03762) with a learned scale, added to the token embedding."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    theta: PositiveFloat = 10000.0

    def build(self, dim: int) -> SinusoidalPosition:
        """The module for vectors of ``dim``, an even number."""
        if dim % 2:
            raise ConfigError(
                f"position: sinusoidal positions need an even width, got {dim}; make the embedding "
                "width even or choose another kind"
            )
        return SinusoidalPosition(dim, theta=self.theta)


@configclass
class NoPositionConfig:
    """No positions: a causal model can infer order from the mask alone (NoPE, 2305.19466)."""

    kind: Literal["none"] = "none"


PositionConfig = Annotated[
    RotaryConfig | PolarConfig | LearnedConfig | SinusoidalConfig | NoPositionConfig,
    Field(discriminator="kind"),
]
