"""What steers all sublayers of a stack: a condition, or the stack's own input."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.model.config import LayersConfig
from xtdist.nn.linear import Linear


class ConditionMLP(nn.Module):
    """The condition of adaptive parts, widened: SiLU(W c)."""

    def __init__(self, config: LayersConfig) -> None:
        super().__init__()
        widths = (
            getattr(part, "dim_condition", None) for part in (config.norm, config.branch_scale)
        )
        dim = next((width for width in widths if width), config.dim)
        assert config.condition_mlp is not None
        self.proj = Linear(dim // config.condition_mlp, dim)

    def forward(self, condition: Float[Tensor, "b n c"]) -> Float[Tensor, "b n e"]:
        return F.silu(self.proj(condition))


class Reinject(nn.Module):
    """The stack's input, projected, for every sublayer; ``gated``: how much, for each token."""

    def __init__(self, dim: int, *, gated: bool) -> None:
        super().__init__()
        self.proj = Linear(dim, dim)
        self.gate = Linear(dim, 1) if gated else None

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        out = self.proj(x)
        return out if self.gate is None else out * self.gate(x).sigmoid()
