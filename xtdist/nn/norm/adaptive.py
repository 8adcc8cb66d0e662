"""Norms whose gain is computed from a condition vector (DiT, 2212.09748)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.config import PositiveFloat, PositiveInt, configclass
from xtdist.nn.linear import Linear


@configclass
class AdaptiveLayerNormConfig:
    """LayerNorm with the gain 1 + W condition. ``dim_condition`` null = the model's dim."""

    needs_condition: ClassVar[bool] = True
    kind: Literal["adaptive_layernorm"] = "adaptive_layernorm"
    dim_condition: PositiveInt | None = None
    eps: PositiveFloat = 1e-5

    def build(self, dim: int) -> AdaptiveLayerNorm:
        """The module for vectors of ``dim``."""
        return AdaptiveLayerNorm(dim, self)


@configclass
class AdaptiveRMSNormConfig:
    """RMSNorm with the gain 1 + W condition. ``dim_condition`` null = the model's dim."""

    needs_condition: ClassVar[bool] = True
    kind: Literal["adaptive_rmsnorm"] = "adaptive_rmsnorm"
    dim_condition: PositiveInt | None = None
    eps: PositiveFloat = 1e-6

    def build(self, dim: int) -> AdaptiveRMSNorm:
        """The module for vectors of ``dim``."""
        return AdaptiveRMSNorm(dim, self)


def check_condition(condition: Tensor, x: Tensor, *, dim: int) -> None:
    """Refuse a condition that would broadcast into nonsense.

    Raises:
        ValueError: not (b, 1, c) or (b, n, c) for an input (b, n, d).
    """
    batch, n = x.shape[0], x.shape[-2]
    fits = condition.ndim == 3 and condition.shape[0] == batch and condition.shape[1] in (1, n)
    if not fits or condition.shape[-1] != dim:
        raise ValueError(
            f"condition: got shape {tuple(condition.shape)}; it must be ({batch}, 1, {dim}) for "
            f"one condition a sample or ({batch}, {n}, {dim}) for one a token"
        )


class _Adaptive(nn.Module):
    """The learned map from condition to gain; starts at a gain of one for every condition."""

    needs_condition = True

    def __init__(self, dim: int, *, dim_condition: int | None, eps: float) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.dim_condition = dim_condition or dim
        self.to_gain = Linear(self.dim_condition, dim, init_gain=0.0)

    def modulate(self, normed: Tensor, condition: Tensor) -> Tensor:
        """The normalized input times its gain."""
        check_condition(condition, normed, dim=self.dim_condition)
        return normed * (self.to_gain(condition) + 1.0)


class AdaptiveLayerNorm(_Adaptive):
    """x, c ↦ (1 + W c) · (x − mean) / std."""

    def __init__(self, dim: int, config: AdaptiveLayerNormConfig) -> None:
        super().__init__(dim, dim_condition=config.dim_condition, eps=config.eps)

    def forward(
        self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b 1|n c"]
    ) -> Float[Tensor, "b n d"]:
        return self.modulate(F.layer_norm(x, (self.dim,), eps=self.eps), condition)


class AdaptiveRMSNorm(_Adaptive):
    """x, c ↦ (1 + W c) · x / rms(x)."""

    def __init__(self, dim: int, config: AdaptiveRMSNormConfig) -> None:
        super().__init__(dim, dim_condition=config.dim_condition, eps=config.eps)

    def forward(
        self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b 1|n c"]
    ) -> Float[Tensor, "b n d"]:
        return self.modulate(F.rms_norm(x, (self.dim,), eps=self.eps), condition)
