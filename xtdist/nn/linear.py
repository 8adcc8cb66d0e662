"""The linear layer of this library, and the one way in which parameters get their first values."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Initializes(Protocol):
    """A module that knows how its own parameters start."""

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new values for the parameters this module itself owns."""


def scaled_normal_(weight: Tensor, fan_in: int, generator: torch.Generator | None) -> None:
    """Normal values of standard deviation (3 fan_in)^-1/2: GPT-2's 0.02 at width 833, and the same
    activations at any other width."""
    nn.init.normal_(weight, std=1 / math.sqrt(3 * fan_in), generator=generator)


class Linear(nn.Linear):
    """A linear layer with our init: scaled normal weights, zero biases.

    ``init_gain`` multiplies the start values; the projections that write into the residual stream
    use (2 depth)^-1/2, so that the stream's size does not grow with depth (GPT-2).
    """

    def __init__(
        self, dim_in: int, dim_out: int, *, bias: bool = False, init_gain: float = 1.0
    ) -> None:
        self.init_gain = init_gain
        super().__init__(dim_in, dim_out, bias=bias)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights again."""
        scaled_normal_(self.weight, self.in_features, generator)
        self.weight.mul_(self.init_gain)
        if self.bias is not None:
            self.bias.zero_()


def initialize(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Give every parameter under ``module`` its start value, in the fixed order of the modules:
    the same generator state gives the same model."""
    for part in module.modules():
        if isinstance(part, Initializes):
            part.reset_parameters(generator)
