"""What the distance of two tokens adds to their score, as configs."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from xtdist.config import ConfigError, FiniteFloat, PositiveInt, configclass
from xtdist.nn.position.alibi import AlibiBias, alibi_slopes
from xtdist.nn.position.dynamic import DynamicBias
from xtdist.nn.position.geometry import PositionGeometry
from xtdist.nn.position.t5 import T5Bias


class PositionBias(Protocol):
    """One number for each head, query position and key position, added to the scaled scores.

    ``reach``: no two of the positions lie further apart, known without looking at them (n - 1 for
    a sequence with default positions). It saves work and changes nothing else.
    """

    def __call__(
        self, q_pos: Int[Tensor, "b i"], k_pos: Int[Tensor, "b j"], *, reach: int | None = None
    ) -> Float[Tensor, "b h i j"]: ...


@configclass
class AlibiConfig:
    """A penalty that grows linearly with distance (ALiBi, 2108.12409).

    ``heads``: only so many of the heads have it; null = all, or as many as ``slopes`` are given.
    ``slopes``: one for each of them, null = the paper's. Heads are counted as x-transformers counts
    them: head t reads key/value head t mod kv_heads.
    """

    kind: Literal["alibi"] = "alibi"
    heads: PositiveInt | None = None
    slopes: tuple[FiniteFloat, ...] | None = None

    def __post_init__(self) -> None:
        if self.slopes is not None and len(self.slopes) != (self.heads or len(self.slopes)):
            raise ConfigError(
                f"position_bias.slopes: got {len(self.slopes)} for {self.heads} heads; give one "
                "for each"
            )
        if self.slopes is not None and not self.slopes:
            raise ConfigError("position_bias.slopes: got none; give one for each head, or null")

    def build(self, geometry: PositionGeometry) -> AlibiBias:
        """The module, shared by all layers."""
        count = self.heads or (geometry.heads if self.slopes is None else len(self.slopes))
        if count > geometry.heads:
            raise ConfigError(
                f"position_bias.heads: got {count} of {geometry.heads} heads; give at most all"
            )
        slopes = self.slopes or alibi_slopes(count)
        return AlibiBias(slopes, heads=geometry.heads, kv_heads=geometry.kv_heads)


@configclass
class T5Config:
    """A learned number for each head and bucket of distances (T5, 1910.10683): exact for short
    distances, logarithmic up to ``max_distance``, one bucket beyond."""

    kind: Literal["t5"] = "t5"
    buckets: PositiveInt = 32
    max_distance: PositiveInt = 128

    def __post_init__(self) -> None:
        if not 2 <= self.buckets <= self.max_distance:
            raise ConfigError(
                f"position_bias.buckets: got {self.buckets} with max_distance={self.max_distance}; "
                "give at least 2 and at most max_distance"
            )

    def build(self, geometry: PositionGeometry) -> T5Bias:
        """The module, shared by all layers."""
        if not geometry.causal and self.buckets < 4:
            raise ConfigError(
                f"position_bias.buckets: got {self.buckets}; a bidirectional stack needs at least "
                "4, half of them for each direction"
            )
        return T5Bias(
            geometry.heads,
            buckets=self.buckets,
            max_distance=self.max_distance,
            causal=geometry.causal,
            scale=geometry.dim_head**0.5,
        )


@configclass
class DynamicConfig:
    """A small network of the distance (2111.09883): ``depth`` hidden layers of ``hidden`` units
    (null = a quarter of the width), optionally normalized, fed with the distance or its logarithm.
    """

    kind: Literal["dynamic"] = "dynamic"
    log_distance: bool = False
    depth: PositiveInt = 2
    norm: bool = False
    hidden: PositiveInt | None = None

    def build(self, geometry: PositionGeometry) -> DynamicBias:
        """The module, shared by all layers."""
        return DynamicBias(
            geometry.heads,
            hidden=self.hidden or max(1, geometry.dim // 4),
            depth=self.depth,
            log_distance=self.log_distance,
            norm=self.norm,
        )


PositionBiasConfig = Annotated[AlibiConfig | T5Config | DynamicConfig, Field(discriminator="kind")]
