"""GRU-gated residual (GTrXL, 1910.06764)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xtdist.nn.linear import scaled_normal_
from xtdist.nn.residual.base import Carry
from xtdist.nn.residual.config import GRUResidualConfig
from xtdist.nn.residual.plain import ScaledStream

_START_UPDATE_BIAS = (
    2.0  # the update gate keeps σ(2) = 88 % of the stream at first (the paper's b_g)
)


class GRUResidual(ScaledStream):
    """z · stream + (1 − z) · n with the GRU's reset gate r, update gate z and candidate n; the
    rows of the weights are r, z, n."""

    def __init__(self, dim: int, config: GRUResidualConfig) -> None:
        super().__init__(dim, learned_scale=config.learned_scale)
        self.dim = dim
        self.weight_branch = nn.Parameter(torch.empty(3 * dim, dim))
        self.weight_stream = nn.Parameter(torch.empty(3 * dim, dim))
        self.bias_branch = nn.Parameter(torch.empty(3 * dim))
        self.bias_stream = nn.Parameter(torch.empty(3 * dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start near the identity on the stream."""
        super().reset_parameters(generator)
        for weight in (self.weight_branch, self.weight_stream):
            scaled_normal_(weight, self.dim, generator)
        self.bias_branch.zero_()
        self.bias_stream.zero_()
        self.bias_stream[self.dim : 2 * self.dim] = _START_UPDATE_BIAS

    def write(
        self, branch: Float[Tensor, "b n d"], carry: Carry, mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b n d"]:
        stream = self.scaled(carry[0])
        r, z, n = F.linear(branch, self.weight_branch, self.bias_branch).chunk(3, dim=-1)
        r_s, z_s, n_s = F.linear(stream, self.weight_stream, self.bias_stream).chunk(3, dim=-1)
        candidate = torch.tanh(n + torch.sigmoid(r + r_s) * n_s)
        return candidate + (stream - candidate) * torch.sigmoid(z + z_s)
