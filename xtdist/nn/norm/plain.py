"""Norms that divide by a statistic of the vector: LayerNorm, RMSNorm and their gain-less kin.

Statistics are taken in fp32 whatever the input's type.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.config import PositiveFloat, configclass


@configclass
class LayerNormConfig:
    """LayerNorm (1607.06450), by default without ``bias``.

    ``unit_offset`` stores the gain minus one, so that weight decay pulls it to 1 instead of 0.
    """

    needs_condition: ClassVar[bool] = False
    kind: Literal["layernorm"] = "layernorm"
    unit_offset: bool = True
    bias: bool = False
    eps: PositiveFloat = 1e-5

    def build(self, dim: int) -> LayerNorm:
        """The module for vectors of ``dim``."""
        return LayerNorm(dim, self)


@configclass
class RMSNormConfig:
    """RMSNorm (1910.07467).

    ``unit_offset`` stores the gain minus one, so that weight decay pulls it to 1 instead of 0.
    """

    needs_condition: ClassVar[bool] = False
    kind: Literal["rmsnorm"] = "rmsnorm"
    unit_offset: bool = True
    eps: PositiveFloat = 1e-6

    def build(self, dim: int) -> RMSNorm:
        """The module for vectors of ``dim``."""
        return RMSNorm((dim,), self)


@configclass
class SimpleRMSNormConfig:
    """RMSNorm without a gain (TransNormer, 2307.14995)."""

    needs_condition: ClassVar[bool] = False
    kind: Literal["simple_rmsnorm"] = "simple_rmsnorm"
    eps: PositiveFloat = 1e-6

    def build(self, dim: int) -> SimpleRMSNorm:
        """The module for vectors of ``dim``."""
        return SimpleRMSNorm(dim, self)


@configclass
class ScaleNormConfig:
    """ScaleNorm (1910.05895): RMSNorm with one gain for all channels.

    ``unit_offset`` stores the gain minus one, so that weight decay pulls it to 1 instead of 0.
    """

    needs_condition: ClassVar[bool] = False
    kind: Literal["scalenorm"] = "scalenorm"
    unit_offset: bool = True
    eps: PositiveFloat = 1e-6

    def build(self, dim: int) -> ScaleNorm:
        """The module for vectors of ``dim``."""
        return ScaleNorm(dim, self)


class _Gain(nn.Module):
    """A learned gain, stored with or without its offset of one."""

    needs_condition = False

    def __init__(self, shape: tuple[int, ...], *, unit_offset: bool) -> None:
        super().__init__()
        self.unit_offset = unit_offset
        self.gain = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start as the identity."""
        self.gain.fill_(0.0 if self.unit_offset else 1.0)

    def effective_gain(self) -> Tensor:
        """The factor that multiplies the normalized input."""
        return self.gain + 1.0 if self.unit_offset else self.gain


class LayerNorm(_Gain):
    """x ↦ gain · (x − mean) / std [+ bias]."""

    def __init__(self, dim: int, config: LayerNormConfig) -> None:
        super().__init__((dim,), unit_offset=config.unit_offset)
        self.eps = config.eps
        self.bias = nn.Parameter(torch.zeros(dim)) if config.bias else None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start as the identity."""
        super().reset_parameters(generator)
        bias = getattr(self, "bias", None)  # the base class calls this before there is one
        if bias is not None:
            bias.zero_()

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        gain = self.effective_gain()
        return F.layer_norm(x, gain.shape, weight=gain, bias=self.bias, eps=self.eps)


class RMSNorm(_Gain):
    """x ↦ gain · x / rms(x).

    The gain may have leading dimensions (heads, 1, d): one vector for each head.
    """

    def __init__(self, shape: tuple[int, ...], config: RMSNormConfig) -> None:
        super().__init__(shape, unit_offset=config.unit_offset)
        self.eps = config.eps

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        if self.gain.ndim == 1:
            return F.rms_norm(x, self.gain.shape, weight=self.effective_gain(), eps=self.eps)
        return F.rms_norm(x, self.gain.shape[-1:], eps=self.eps) * self.effective_gain()


class SimpleRMSNorm(nn.Module):
    """x ↦ x / rms(x)."""

    needs_condition = False

    def __init__(self, dim: int, config: SimpleRMSNormConfig) -> None:
        super().__init__()
        self.dim = dim
        self.eps = config.eps

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.rms_norm(x, (self.dim,), eps=self.eps)


class ScaleNorm(_Gain):
    """x ↦ gain · x / rms(x) with a scalar gain."""

    def __init__(self, dim: int, config: ScaleNormConfig) -> None:
        super().__init__((1,), unit_offset=config.unit_offset)
        self.dim = dim
        self.eps = config.eps

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.rms_norm(x, (self.dim,), eps=self.eps) * self.effective_gain()
