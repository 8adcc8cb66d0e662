"""Cross-entropy over a large vocabulary without the large tensor."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from xtdist.nn.embedding import HeadFunction

CHUNK_LOGITS = 2**24
"""Logits that exist at once, in fp32: 64 MiB, and as much again for their gradient."""


def cross_entropy_of(
    targets: Int[Tensor, " m"], weights: Float[Tensor, " m"], *, chunk_rows: int | None = None
) -> HeadFunction:
    """The function (hidden (m, d), weight (v, d)) ↦ Σᵢ weightsᵢ · CE(hiddenᵢ weightᵀ, targetsᵢ).

    Give it to ``model.apply_head``. Softmax and sum are fp32; ``chunk_rows`` rows have logits at
    a time (default: as many as ``CHUNK_LOGITS`` allows).
    """

    def function(hidden: Tensor, weight: Tensor) -> Tensor:
        rows = chunk_rows or max(1, CHUNK_LOGITS // weight.shape[0])
        total: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets, weights, rows)
        return total

    return function


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient of softmax cross-entropy is known in the forward pass (p − onehot), so it is
    taken there, chunk by chunk, and only scaled in the backward pass: nothing is computed twice and
    no logits are kept. Costs one gradient of the head's weight held from forward to backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, rows: int
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        wanted = ctx.needs_input_grad
        # fp16 can't hold the small probabilities of a large vocabulary: keep them away from its end
        lift = 1024.0 if hidden.dtype == torch.float16 else 1.0
        exact = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
        d_hidden = torch.empty_like(hidden, dtype=exact) if wanted[0] else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        for at in range(0, len(hidden), rows):
            part = slice(at, at + rows)
            logits = torch.mm(hidden[part], weight.t()).float()
            target, share = targets[part, None], weights[part, None].float()
            log_z = logits.logsumexp(dim=-1, keepdim=True)
            total += ((log_z - logits.gather(1, target)) * share).sum()
            if not any(wanted[:2]):
                continue
            d_logits = logits.sub_(log_z).exp_().mul_(share)
            d_logits = d_logits.scatter_add_(1, target, -share).mul_(lift).to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[part] = torch.mm(d_logits, weight).to(exact) / lift
            if d_weight is not None:
                d_weight += torch.mm(d_logits.t(), hidden[part]) / lift
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if part is None else (part * grad).to(dtype)
            for part, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)
