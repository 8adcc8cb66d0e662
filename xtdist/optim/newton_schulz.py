"""Making matrices orthogonal by matrix products alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7


def orthogonal(matrix: Tensor, *, steps: int, precision: Literal["bf16", "fp32"]) -> Tensor:
    """About U V^T of ``matrix`` = U S V^T, (m, n), in its dtype, by ``steps`` of the Newton-Schulz
    iteration of https://kellerjordan.github.io/posts/muon; singular values end in about
    0.7 to 1.2. Zero stays zero."""
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    tall = x.shape[0] > x.shape[1]
    if tall:  # the smaller Gram matrix
        x = x.T
    x = x / x.norm().clamp(min=EPS)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
