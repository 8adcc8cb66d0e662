"""MLP and gated feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.nn.feedforward.config import GLUConfig, MLPConfig, inner_dim
from xtdist.nn.linear import Linear
from xtdist.nn.norm import LayerNormConfig


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)² (2109.08668)."""
    return F.relu(x).square()


def softmax_linear(x: Tensor) -> Tensor:
    """x · softmax(x) over the channels: SoLU before its norm."""
    return x * x.softmax(dim=-1)


def normal_cdf(x: Tensor) -> Tensor:
    """Φ(x): gelu(x) = x · Φ(x)."""
    return torch.special.ndtr(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "relu_squared": relu_squared,
    "solu": softmax_linear,
}
SATURATING: dict[str, Callable[[Tensor], Tensor]] = {"gelu": normal_cdf, "silu": torch.sigmoid}


def softclamp(x: Tensor, limit: float) -> Tensor:
    """x bent smoothly into ±limit."""
    return torch.tanh(x / limit) * limit


def activate_mlp(x: Float[Tensor, "... e"], config: MLPConfig) -> Float[Tensor, "... e"]:
    """act(x), with the input clamped where the config says so."""
    if config.softclamp is not None:
        x = softclamp(x, config.softclamp)
    return ACTIVATIONS[config.activation](x)


def activate_gate(gate: Float[Tensor, "... e"], config: GLUConfig) -> Float[Tensor, "... e"]:
    """act(gate), with its growing factor clamped where the config says so."""
    if config.gate_softclamp is None:
        return ACTIVATIONS[config.activation](gate)
    return softclamp(gate, config.gate_softclamp) * SATURATING[config.activation](gate)


def clamp_up(up: Float[Tensor, "... e"], config: GLUConfig) -> Float[Tensor, "... e"]:
    """The linear factor of a GLU, clamped where the config says so."""
    return up if config.up_softclamp is None else softclamp(up, config.up_softclamp)


class FeedForward(nn.Module):
    """W₂ act(W₁ x), or W₂ (W₁ x · act(V x)) when gated; one matrix holds W₁, then V.

    ``init_gain`` multiplies the start values of W₂. ``inner`` overrides the inner width.
    """

    def __init__(
        self,
        dim: int,
        config: MLPConfig | GLUConfig,
        *,
        init_gain: float = 1.0,
        inner: int | None = None,
    ) -> None:
        super().__init__()
        inner = inner or inner_dim(config, dim)
        gated = isinstance(config, GLUConfig)
        gain_out = 0.0 if config.zero_init_output else init_gain
        norm = LayerNormConfig(unit_offset=False)
        self.config = config
        self.proj_in = Linear(dim, inner * (2 if gated else 1), bias=config.bias_in)
        self.proj_out = Linear(inner, dim, bias=config.bias_out, init_gain=gain_out)
        self.act_norm = norm.build(inner) if config.activation == "solu" else None
        self.post_act_norm = norm.build(inner) if config.post_act_norm else None
        has_factor = isinstance(config, GLUConfig) and config.mult_bias
        self.mult_bias = nn.Parameter(torch.empty(inner)) if has_factor else None
        plain = config.activation != "solu" and not config.post_act_norm
        self.repeatable = plain and not has_factor  # nothing between the matrices has parameters
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start the learned factor of a GLU at one."""
        if self.mult_bias is not None:
            self.mult_bias.fill_(1.0)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = self.proj_in(x)
        if self.repeatable and not (self.training and self.config.dropout):
            x = self.proj_out(x, self.hidden)
        else:
            x = self.hidden(x)
            x = x if self.post_act_norm is None else self.post_act_norm(x)
            x = self.proj_out(F.dropout(x, self.config.dropout, self.training))
        if self.training and self.config.dropout_out:
            x = F.dropout(x, self.config.dropout_out)
        return x

    def hidden(self, x: Float[Tensor, "b n f"]) -> Float[Tensor, "b n e"]:
        """act(x), or up · act(gate) when gated."""
        if isinstance(self.config, MLPConfig):
            x = activate_mlp(x, self.config)
            return x if self.act_norm is None else self.act_norm(x)
        up, gate = x.chunk(2, dim=-1)
        gate = activate_gate(gate, self.config)
        gate = gate if self.act_norm is None else self.act_norm(gate)
        x = clamp_up(up, self.config) * gate
        return x if self.mult_bias is None else x * self.mult_bias
