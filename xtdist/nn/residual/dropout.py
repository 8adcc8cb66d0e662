"""Layer dropout (stochastic depth, 1603.09382)."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


def keep_mask(
    stream: Float[Tensor, "b ..."], p: float, *, generator: torch.Generator | None = None
) -> Bool[Tensor, "b ..."]:
    """One draw for each sample, False with probability ``p``, shaped to broadcast over ``stream``.

    A dropped sample keeps its stream: ``torch.where(keep, layer(stream), stream)``. All ranks run
    all layers whatever is drawn, so every parameter has a gradient in every step (zero where all
    samples are dropped). Nothing is rescaled at inference.
    """
    kept = torch.rand(stream.shape[0], device=stream.device, generator=generator) >= p
    return rearrange(kept, f"b -> b {'1 ' * (stream.ndim - 1)}")
