"""One matrix product for each group of rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_ALIGNMENT_BYTES = 16


def grouped_matmul(
    rows: Float[Tensor, "r i"], weight: Float[Tensor, "g i o"], ends: Int[Tensor, " g"]
) -> Float[Tensor, "r o"]:
    """Rows ``ends[g-1]`` to ``ends[g]`` times ``weight[g]``; groups may be empty.

    ``ends`` is int32 and its last entry is the number of rows. An empty group's weight gets the
    gradient 0. In bf16 nothing is read on the host.
    """
    if _kernel_takes(rows) and _kernel_takes(weight):
        return F.grouped_mm(rows, weight, offs=ends)
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    groups = zip(rows.split(sizes), weight.unbind(), strict=True)
    return torch.cat([group @ matrix for group, matrix in groups])


def _kernel_takes(x: Tensor) -> bool:
    """Whether torch's kernel takes this operand: bf16, rows aligned for its loads."""
    aligned = x.shape[-1] * x.element_size() % _ALIGNMENT_BYTES == 0
    return x.dtype is torch.bfloat16 and aligned and x.is_contiguous()
