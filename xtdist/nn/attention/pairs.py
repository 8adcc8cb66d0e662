"""Biases that a layer computes from its own tokens, for each pair of query and key."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.nn.attention.cache import Kept
from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.attention.masks import EVERYTHING, Visible
from xtdist.nn.position.geometry import PositionGeometry

Rows = tuple[Float[Tensor, "b _h n _e"], ...]
"""What the queries need beside themselves, cut along n as they are."""


class PairBias(nn.Module):
    """Forget gates and the relative projection: what they need of queries, what they leave of keys,
    and the bias of the two."""

    def __init__(self, geometry: PositionGeometry, config: AttentionConfig) -> None:
        super().__init__()
        self.forgetting = self.relative = None
        if config.forgetting is not None:
            self.forgetting = config.forgetting.build(geometry)
        if config.relative_projection is not None:
            self.relative = config.relative_projection.build(geometry)

    def project(
        self, x: Float[Tensor, "b n m"], source: Float[Tensor, "b j m"]
    ) -> tuple[Rows, Kept]:
        """Of the tokens ``x``, the last n of ``source``."""
        rows: Rows = ()
        kept: Kept = ()
        if self.forgetting is not None:
            row, left = self.forgetting.project(source)
            rows, kept = (row[:, :, source.shape[1] - x.shape[1] :],), (left,)
        if self.relative is not None:
            rows = (*rows, rearrange(x, "b n m -> b 1 n m"))
        return rows, kept

    def forward(
        self,
        rows: Rows,
        kept: Kept,
        q_pos: Int[Tensor, "b i"],
        k_pos: Int[Tensor, "b j"],
        visible: Visible = EVERYTHING,
    ) -> Float[Tensor, "b h i j"]:
        """What to add to the scores, fp32."""
        terms = []
        if self.forgetting is not None:
            i, j = q_pos.shape[1], k_pos.shape[1]
            seen = visible.wherever(i, j, q_pos.device)
            terms.append(self.forgetting.bias(rows[0], kept[0], seen))
        if self.relative is not None:
            x = rearrange(rows[-1], "b 1 n m -> b n m")
            terms.append(self.relative(x, q_pos, k_pos))
        return terms[0] if len(terms) == 1 else torch.add(*terms)
