"""The position-wise feed-forward layer: MLP and gated variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from xtdist.config import PositiveFloat, PositiveInt, Probability, configclass
from xtdist.nn.linear import Linear

Activation = Literal["gelu", "silu", "relu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
}


@configclass
class MLPConfig:
    """W₂ act(W₁ x). The inner width is ``mult`` × dim, rounded up to ``multiple_of``."""

    kind: Literal["mlp"] = "mlp"
    activation: Activation = "gelu"
    mult: PositiveFloat = 4.0
    multiple_of: PositiveInt = 1
    bias_in: bool = False
    bias_out: bool = False
    dropout: Probability = 0.0


@configclass
class GLUConfig:
    """W₂ (W₁ x · act(V x)): SwiGLU with ``silu``, GEGLU with ``gelu`` (2002.05202).

    The inner width is ``mult`` × dim, rounded up to ``multiple_of``; at 8/3 it has as many weights
    as an MLP of ``mult`` 4.
    """

    kind: Literal["glu"] = "glu"
    activation: Activation = "silu"
    mult: PositiveFloat = 8 / 3
    multiple_of: PositiveInt = 64
    bias_in: bool = False
    bias_out: bool = False
    dropout: Probability = 0.0


FeedForwardConfig = Annotated[MLPConfig | GLUConfig, Field(discriminator="kind")]


def inner_dim(config: MLPConfig | GLUConfig, dim: int) -> int:
    """The hidden width between the two projections."""
    return -(-int(dim * config.mult) // config.multiple_of) * config.multiple_of


class FeedForward(nn.Module):
    """W₂ act(W₁ x), or W₂ (W₁ x · act(V x)) when gated; one matrix holds W₁, then V."""

    def __init__(self, dim: int, config: MLPConfig | GLUConfig, *, init_gain: float = 1.0) -> None:
        super().__init__()
        inner = inner_dim(config, dim)
        self.gated = config.kind == "glu"
        self.activation = config.activation
        self.dropout = config.dropout
        self.proj_in = Linear(dim, inner * (2 if self.gated else 1), bias=config.bias_in)
        self.proj_out = Linear(inner, dim, bias=config.bias_out, init_gain=init_gain)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        activate = ACTIVATIONS[self.activation]
        x = self.proj_in(x)
        if self.gated:
            value, gate = x.chunk(2, dim=-1)
            x = value * activate(gate)
        else:
            x = activate(x)
        return self.proj_out(F.dropout(x, self.dropout, self.training))
