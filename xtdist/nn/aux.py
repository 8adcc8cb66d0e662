"""Auxiliary losses: terms of the objective that a layer computes beside its output."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class AuxLoss(NamedTuple):
    """One term ``scale · sum / weight``, kept apart so that ragged batches, accumulation and
    ranks add sums and weights instead of averaging means.

    ``sum`` and ``weight`` are fp32 scalars; the weight is a number of tokens, without gradient.
    """

    name: str
    sum: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    scale: float
