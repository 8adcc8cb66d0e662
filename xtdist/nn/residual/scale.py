"""Factors on a branch's output, before it joins the residual stream."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.nn.linear import Linear
from xtdist.nn.norm.adaptive import check_condition
from xtdist.nn.residual.config import (
    AdaptiveLayerScaleConfig,
    ConstantScaleConfig,
    LayerScaleConfig,
)


class ConstantStart(Linear):
    """A linear layer that starts as the constant ``value``: zero weights, equal biases."""

    def __init__(self, dim_in: int, dim_out: int, *, value: float) -> None:
        self.value = value
        super().__init__(dim_in, dim_out, bias=True)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Back to the constant."""
        self.weight.zero_()
        self.bias.fill_(self.value)


class ConstantScale(nn.Module):
    """branch ↦ value · branch."""

    needs_condition = False

    def __init__(self, config: ConstantScaleConfig) -> None:
        super().__init__()
        self.value = config.value

    def forward(self, branch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return branch * self.value


class LayerScale(nn.Module):
    """branch ↦ gain · branch (CaiT, 2103.17239)."""

    needs_condition = False

    def __init__(self, dim: int, config: LayerScaleConfig) -> None:
        super().__init__()
        self.config = config
        self.gain = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start at the configured gain."""
        self.gain.fill_(self.config.init_value - self.config.unit_offset)

    def forward(self, branch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return branch * (self.gain + 1.0 if self.config.unit_offset else self.gain)


class AdaptiveLayerScale(nn.Module):
    """branch, condition ↦ σ(W condition + b) · branch (DiT, 2212.09748)."""

    needs_condition = True

    def __init__(self, dim: int, config: AdaptiveLayerScaleConfig) -> None:
        super().__init__()
        self.dim_condition = config.dim_condition or dim
        self.to_gain = ConstantStart(self.dim_condition, dim, value=config.init_bias)

    def forward(
        self, branch: Float[Tensor, "b n d"], condition: Float[Tensor, "b 1|n c"]
    ) -> Float[Tensor, "b n d"]:
        check_condition(condition, branch, dim=self.dim_condition)
        return branch * self.to_gain(condition).sigmoid()
