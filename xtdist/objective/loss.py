"""Cross-entropy over a large vocabulary without the large tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from xtdist.nn.embedding import HeadFunction

CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**24}
"""Logits that exist at once, in fp32: 64 MiB on a GPU, fewer where they should fit a cache."""


def cross_entropy_of(
    targets: Int[Tensor, " m"],
    weights: Float[Tensor, " m"],
    *,
    smoothing: float = 0.0,
    each: Float[Tensor, " m"] | None = None,
    chunk_rows: int | None = None,
) -> HeadFunction:
    """The function (hidden (m, d), weight (v, d)) ↦ Σᵢ weightsᵢ · CE(hiddenᵢ weightᵀ, targetsᵢ).

    Give it to ``model.apply_head``. Softmax and sum are fp32; ``chunk_rows`` rows have logits at
    a time (default: as many as ``CHUNK_LOGITS`` allows). ``smoothing`` ε spreads that part of the
    target's probability evenly over the vocabulary (1512.00567). ``each`` is filled with the
    cross-entropies (without gradient).
    """

    def function(hidden: Tensor, weight: Tensor) -> Tensor:
        limit = CHUNK_LOGITS.get(hidden.device.type, CHUNK_LOGITS["cuda"])
        rows = chunk_rows or max(1, limit // weight.shape[0])
        if not torch.is_grad_enabled():  # inputs "need" gradients under no_grad too
            hidden, weight = hidden.detach(), weight.detach()
        options = _Options(rows, smoothing, each)
        total: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets, weights, options)
        return total

    return function


class _Options(NamedTuple):
    rows: int
    smoothing: float
    each: Tensor | None


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient of softmax cross-entropy is known in the forward pass (p − onehot), so it is
    taken there, chunk by chunk, and only scaled in the backward pass: nothing is computed twice and
    no logits are kept. Costs one gradient of the head's weight held from forward to backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        options: _Options,
    ) -> Tensor:
        rows, smoothing, each = options
        true, other = 1 - smoothing, smoothing / weight.shape[0]  # the target's probabilities
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
            chosen, top = logits.gather(1, target), logits.amax(dim=-1, keepdim=True)
            if smoothing:
                chosen = chosen * true + logits.mean(dim=-1, keepdim=True) * smoothing
            powers = logits.sub_(top).exp_()  # in place, and for the loss and its gradient alike
            z = powers.sum(dim=-1, keepdim=True)
            losses = z.log() + top - chosen
            total += (losses * share).sum()
            if each is not None:
                each[part] = losses[:, 0]
            if not any(wanted[:2]):
                continue
            share = share * lift
            d_logits = powers.mul_(share / z).scatter_add_(1, target, -share * true)
            d_logits = (d_logits.sub_(share * other) if smoothing else d_logits).to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[part] = torch.mm(d_logits, weight).to(exact) / lift
            if d_weight is not None and d_logits.dtype == d_weight.dtype:
                d_weight.addmm_(d_logits.t(), hidden[part])
            elif d_weight is not None:
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
