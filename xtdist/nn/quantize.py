"""Weight-only int8 on the CPU: a byte for each weight of a matrix, a scale for each of its rows."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.nn.attention.projection import JointProjection
from xtdist.nn.embedding import Head, TokenEmbedding
from xtdist.nn.feedforward.moe import MoE
from xtdist.nn.linear import Linear

M = TypeVar("M", bound=nn.Module)
CONVERTED = (Linear, JointProjection, Head, TokenEmbedding)
"""Modules whose ``weight`` becomes an ``Int8Matrix``. What derives from them and computes in fp32
keeps its own."""
STEPS = 127
SMALLEST = 1e-30


class Int8Matrix(nn.Module):
    """In the place of a weight (out, in): row o is ``scales[o]`` · ``values[o]``, the nearest of
    255 steps between minus and plus the row's largest magnitude.

    A product adds up integers, exactly: a vector goes in as the sum of two int8 ones, the second in
    steps 254 times finer, so it is rounded by less than 2⁻¹⁵ of its largest magnitude. ``split``,
    ``rows`` and ``whole`` are what else modules do with a weight.
    """

    values: Int[Tensor, "o i"]

    def __init__(self, values: Int[Tensor, "o i"], scales: Float[Tensor, " o"]) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.scales = nn.Parameter(scales, requires_grad=False)

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Float[Tensor, "o i"]) -> Int8Matrix:
        """The nearest to ``weight``."""
        values, scales = _rounded(weight.float())
        return cls(values.to(torch.int8), scales[:, 0].to(weight.dtype))

    @torch.no_grad()
    def forward(
        self, x: Float[Tensor, "... i"], bias: Float[Tensor, " o"] | None = None
    ) -> Float[Tensor, "... o"]:
        """The product with ``x``, and ``bias``."""
        rows = x.reshape(-1, x.shape[-1]).float()
        coarse, scale = _rounded(rows)
        fine = torch.addcmul(rows, coarse, scale, value=-1).div_(scale).mul_(2 * STEPS).round_()
        both = torch.cat((coarse, fine)).to(torch.int8)
        high, low = torch._int_mm(both, self.values.t()).float().chunk(2)
        out = high.add_(low, alpha=0.5 / STEPS).mul_(scale).mul_(self.scales)
        out = out.to(x.dtype).view(*x.shape[:-1], len(self.scales))
        return out if bias is None else out + bias

    def split(self, widths: tuple[int, ...]) -> list[Int8Matrix]:
        """The rows in pieces."""
        pieces = zip(self.values.split(widths), self.scales.split(widths), strict=True)
        return [Int8Matrix(*piece) for piece in pieces]

    def rows(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... i"]:
        """Single rows, in floats."""
        return F.embedding(ids, self.values).to(self.scales.dtype) * self.scales[ids][..., None]

    def whole(self) -> Float[Tensor, "o i"]:
        """All of it, in floats."""
        return self.values.to(self.scales.dtype) * self.scales[:, None]


def _rounded(x: Float[Tensor, "r i"]) -> tuple[Float[Tensor, "r i"], Float[Tensor, "r 1"]]:
    """Each row in whole steps of its own size, and that size; a row of zeros has a tiny one."""
    scale = x.abs().amax(dim=1, keepdim=True).div_(STEPS).clamp_(min=SMALLEST)
    return (x / scale).round_(), scale


def quantize_int8(model: M) -> M:
    """``model`` with its matrices and token embeddings in int8, changed in place and given back:
    it can be run on the CPU, not trained. Norms, biases and learned positions stay.

    Raises:
        ConfigError: a model that is on another device, is being trained, has experts, or is in
            int8 already.
    """
    _check(model)
    matrices: dict[int, Int8Matrix] = {}
    for module in list(model.modules()):
        if type(module) not in CONVERTED:
            continue
        weight = module.weight
        assert isinstance(weight, Tensor)
        if id(weight) not in matrices:
            matrices[id(weight)] = Int8Matrix.of(weight)
        del module.weight
        module.weight = matrices[id(weight)]
    return model


def _check(model: nn.Module) -> None:
    where = {p.device.type for p in model.parameters()}
    if where != {"cpu"}:
        raise ConfigError(
            f"int8: the model is on {', '.join(sorted(where))}; int8 weights are for the CPU: move "
            "it there, or use bfloat16"
        )
    if model.training:
        raise ConfigError(
            "int8: the model is in training mode, and int8 weights can't be trained; call "
            "model.eval() first"
        )
    if any(isinstance(m, MoE) for m in model.modules()):
        raise ConfigError("int8: experts (mixture of experts) stay as they are; use bfloat16")
    if any(isinstance(m, Int8Matrix) for m in model.modules()):
        raise ConfigError("int8: the weights are in int8 already; convert a model once")
    most = torch.full((1, 64), STEPS, dtype=torch.int8)
    if int(torch._int_mm(most, most.t())) != 64 * STEPS**2:
        raise ConfigError("int8: this CPU adds int8 products up in 16 bits and overflows; use fp32")
