"""Orthogonal residual update (2505.11881)."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from xtdist.nn.residual.base import Carry
from xtdist.nn.residual.config import OrthogonalResidualConfig
from xtdist.nn.residual.plain import ScaledStream

_TINY = 1e-24  # squared length below which a stream counts as zero


class OrthogonalResidual(ScaledStream):
    """stream + branch − its projection onto the stream.

    Over a sequence, padding takes no part in the projection.
    """

    def __init__(self, dim: int, config: OrthogonalResidualConfig) -> None:
        super().__init__(dim, learned_scale=config.learned_scale)
        self.over = config.over
        self.causal_safe = config.causal_safe
        self.reset_parameters()

    def write(
        self, branch: Float[Tensor, "b n d"], carry: Carry, mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b n d"]:
        stream = self.scaled(carry[0])
        dot, square = self.inner(branch, stream, mask), self.inner(stream, stream, mask)
        share = (dot / square.clamp(min=_TINY)).to(stream.dtype)
        return stream + (branch - share * stream)

    def inner(
        self, x: Float[Tensor, "b n d"], y: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b n|1 1"]:
        """x · y in fp32, of each token or of the whole sequence."""
        products = torch.sum(x * y, dim=-1, keepdim=True, dtype=torch.float32)
        if self.over == "token":
            return products
        if mask is not None:
            products = products * rearrange(mask, "b n -> b n 1")
        return products.sum(dim=-2, keepdim=True)
