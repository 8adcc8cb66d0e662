"""Stand-ins for a norm that squash each channel by itself instead of dividing by a statistic."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.config import FiniteFloat, PositiveFloat, configclass


@configclass
class DynamicTanhConfig:
    """DyT (2503.10622): gain · tanh(α x) + bias with one learned α.

    ``unit_offset`` stores α and the gain minus their start values, so that weight decay pulls them
    there instead of to 0.
    """

    needs_condition: ClassVar[bool] = False
    kind: Literal["dynamic_tanh"] = "dynamic_tanh"
    init_alpha: PositiveFloat = 1.0
    unit_offset: bool = True

    def build(self, dim: int) -> DynamicTanh:
        """The module for vectors of ``dim``."""
        return DynamicTanh(dim, self)


@configclass
class DerfConfig:
    """Derf (2512.10938): gain · erf(α x + shift) + bias with one learned α and shift.

    ``unit_offset`` stores α and the gain minus one.
    """

    needs_condition: ClassVar[bool] = False
    kind: Literal["derf"] = "derf"
    init_alpha: PositiveFloat = 0.5
    init_shift: FiniteFloat = 0.0
    unit_offset: bool = True

    def build(self, dim: int) -> Derf:
        """The module for vectors of ``dim``."""
        return Derf(dim, self)


class DynamicTanh(nn.Module):
    """x ↦ gain · tanh(α x) + bias."""

    needs_condition = False

    def __init__(self, dim: int, config: DynamicTanhConfig) -> None:
        super().__init__()
        self.init_alpha = config.init_alpha
        self.alpha_offset = config.init_alpha if config.unit_offset else 0.0
        self.gain_offset = 1.0 if config.unit_offset else 0.0
        self.alpha = nn.Parameter(torch.empty(1))
        self.gain = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start as tanh(init_alpha · x)."""
        self.alpha.fill_(self.init_alpha - self.alpha_offset)
        self.gain.fill_(1.0 - self.gain_offset)
        self.bias.zero_()

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        squashed = torch.tanh(x * (self.alpha + self.alpha_offset))
        return squashed * (self.gain + self.gain_offset) + self.bias


class Derf(nn.Module):
    """x ↦ gain · erf(α x + shift) + bias."""

    needs_condition = False

    def __init__(self, dim: int, config: DerfConfig) -> None:
        super().__init__()
        self.init_alpha, self.init_shift = config.init_alpha, config.init_shift
        self.offset = 1.0 if config.unit_offset else 0.0
        self.alpha = nn.Parameter(torch.empty(1))
        self.shift = nn.Parameter(torch.empty(1))
        self.gain = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start as erf(init_alpha · x + init_shift)."""
        self.alpha.fill_(self.init_alpha - self.offset)
        self.shift.fill_(self.init_shift)
        self.gain.fill_(1.0 - self.offset)
        self.bias.zero_()

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        squashed = torch.erf(x * (self.alpha + self.offset) + self.shift)
        return squashed * (self.gain + self.offset) + self.bias
