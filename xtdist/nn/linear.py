"""The linear layer of this library, and the one way in which parameters get their first values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@runtime_checkable
class Initializes(Protocol):
    """A module that knows how its own parameters start."""

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new values for the parameters this module itself owns."""


def scaled_normal_(weight: Tensor, fan_in: int, generator: torch.Generator | None) -> None:
    """Normal values of standard deviation (3 fan_in)^-1/2: GPT-2's 0.02 at width 833, and the same
    activations at any other width."""
    nn.init.normal_(weight, std=1 / math.sqrt(3 * fan_in), generator=generator)


def product(x: Tensor, weight: Tensor | nn.Module, bias: Tensor | None = None) -> Tensor:
    """W x + b; a module in the place of a weight knows its own product."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    return cast(Tensor, weight(x, bias))


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

    def forward(self, x: Tensor, before: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """W before(x) + b. ``before`` has no parameters and draws nothing: what it returns is not
        kept for the backward pass but computed again there, which costs less than the memory."""
        if before is None:
            return product(x, self.weight, self.bias)
        if (
            torch.compiler.is_compiling()  # the compiler decides for itself what to keep
            or not torch.is_grad_enabled()
            or torch.is_autocast_enabled(x.device.type)
            or not isinstance(self.weight, Tensor)
        ):
            return product(before(x), self.weight, self.bias)
        out: Tensor = _LinearOf.apply(x, self.weight, self.bias, before)
        return out


class _LinearOf(torch.autograd.Function):
    """W f(x) + b that keeps x alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        function: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.function = function
        return F.linear(function(x), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            inner = ctx.function(x)
        rows = grad.flatten(0, -2)
        d_weight = rows.t() @ inner.detach().flatten(0, -2) if wanted[1] else None
        d_bias = rows.sum(dim=0) if wanted[2] else None
        d_x = torch.autograd.grad(inner, x, grad @ weight)[0] if wanted[0] else None
        return d_x, d_weight, d_bias, None


def initialize(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Give every parameter under ``module`` its start value, in the fixed order of the modules:
    the same generator state gives the same model."""
    for part in module.modules():
        if isinstance(part, Initializes):
            part.reset_parameters(generator)
