"""Mean-variance split residual update (2605.06169)."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xtdist.nn.residual.base import Carry, Residual
from xtdist.nn.residual.config import MVSplitResidualConfig
from xtdist.nn.residual.scale import ConstantStart


def sequence_mean(
    x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None
) -> Float[Tensor, "b 1 d"]:
    """The mean over the real tokens, summed in fp32."""
    if mask is None:
        return x.mean(dim=-2, keepdim=True, dtype=torch.float32).to(x.dtype)
    real = rearrange(mask, "b n -> b n 1")
    total = (x * real).sum(dim=-2, keepdim=True, dtype=torch.float32)
    return (total / real.sum(dim=-2, keepdim=True).clamp(min=1)).to(x.dtype)


class MVSplitResidual(Residual):
    """stream + β (branch − m) + α (m − mean of stream), m the branch's mean over the sequence."""

    causal_safe = False

    def __init__(self, dim: int, config: MVSplitResidualConfig) -> None:
        super().__init__()
        self.config = config
        if config.learned:
            self.to_alpha = ConstantStart(dim, dim, value=config.init_alpha)
            self.to_beta = ConstantStart(dim, dim, value=config.init_beta)
        else:
            self.alpha = nn.Parameter(torch.empty(dim))
            self.beta = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start α and β at the configured constants."""
        if not self.config.learned:
            self.alpha.fill_(self.config.init_alpha)
            self.beta.fill_(self.config.init_beta)

    def write(
        self, branch: Float[Tensor, "b n d"], carry: Carry, mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b n d"]:
        stream = carry[0]
        mean, stream_mean = sequence_mean(branch, mask), sequence_mean(stream, mask)
        if self.config.learned:
            alpha, beta = self.to_alpha(mean), self.to_beta(mean)
        else:
            alpha, beta = self.alpha, self.beta
        return stream + (branch - mean) * beta + (mean - stream_mean) * alpha
