"""stream + branch, and the learned scale that some policies put on the stream."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xtdist.nn.residual.base import Carry, Residual
from xtdist.nn.residual.config import PlainResidualConfig


class ScaledStream(Residual):
    """A policy that first multiplies the stream's channels by learned factors, if asked to."""

    def __init__(self, dim: int, *, learned_scale: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(dim)) if learned_scale else None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start the factors at one."""
        if self.scale is not None:
            self.scale.fill_(1.0)

    def scaled(self, stream: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The stream times its factors."""
        return stream if self.scale is None else stream * self.scale


class PlainResidual(ScaledStream):
    """branch + constant · scale · stream."""

    def __init__(self, dim: int, config: PlainResidualConfig) -> None:
        super().__init__(dim, learned_scale=config.learned_scale)
        self.constant = config.constant
        self.reset_parameters()

    def write(
        self, branch: Float[Tensor, "b n d"], carry: Carry, mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b n d"]:
        stream = self.scaled(carry[0])
        return branch + (stream if self.constant == 1.0 else stream * self.constant)
