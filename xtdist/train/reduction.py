"""Sums whose bits do not depend on how many workers there are.

A step's micro-batches are the leaves of one binary tree, by their number in the step. Whoever adds
up a part of them adds whole subtrees, so any cut of the leaves among workers gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from xtdist.data import rank_slice


class Node(NamedTuple):
    """The sum of leaves [first, first + size); ``size`` is a power of two."""

    first: int
    size: int
    value: Tensor


class TreeSum:
    """Adds up leaves, or nodes, that come in order. Holds about two log2(leaves) of them.

    Example:
        >>> tree = TreeSum()
        >>> for i, x in enumerate([1e8, 1.0, -1e8]):
        ...     tree.add(Node(i, 1, torch.tensor(x)))
        >>> [(node.first, node.size) for node in tree.nodes]
        [(0, 2), (2, 1)]
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, node: Node) -> None:
        """``node`` begins where the last one ended. Its value is the tree's from now on."""
        while self.nodes:
            last = self.nodes[-1]
            if last.size != node.size or last.first % (2 * last.size):
                break
            self.nodes.pop()
            node = Node(last.first, 2 * last.size, last.value.add_(node.value))
        self.nodes.append(node)

    def total(self) -> Tensor:
        """The root: what stands further right is added up first."""
        *rest, last = self.nodes
        total = last.value
        for node in reversed(rest):
            total = node.value + total
        return total


def nodes_of(leaves: range) -> list[tuple[int, int]]:
    """(first, size) of the nodes that a :class:`TreeSum` holds after just these leaves."""
    tree, none = TreeSum(), torch.zeros(())
    for i in leaves:
        tree.add(Node(i, 1, none))
    return [(node.first, node.size) for node in tree.nodes]


def micro_batches(rows: int, *, size: int, rank: int, world: int) -> range:
    """The numbers of a rank's micro-batches, of ``size`` rows each, of a step of ``rows``."""
    mine = rank_slice(rows, rank, world, unit=size)
    return range(mine.start // size, -(-mine.stop // size))


def sum_on_first(tree: TreeSum, shares: Sequence[range], like: Tensor) -> Tensor | None:
    """On rank 0 the sum over all ranks, None elsewhere. Rank r has added the leaves ``shares[r]``;
    ``like``: a tensor as each value is."""
    rank = dist.get_rank()
    if rank:
        for node in tree.nodes:
            dist.send(node.value, dst=0)
        return None
    for source in range(1, len(shares)):
        for first, size in nodes_of(shares[source]):
            value = torch.empty_like(like)
            dist.recv(value, src=source)
            tree.add(Node(first, size, value))
    return tree.total()


def sum_in_order(values: Tensor, leaves: range, count: int) -> Tensor:
    """Σ over all ranks of ``values`` [leaves, k] (fp64), one leaf of ``count`` after the other."""
    table = values.new_zeros(count, values.shape[1])
    table[leaves.start : leaves.stop] = values
    dist.all_reduce(table)  # adds zeros only
    return table.cumsum(0)[-1]


class GivenGradient(torch.autograd.Function):
    """Zero, whose gradient in each parameter is what is given: how a gradient that was summed
    elsewhere gets into an engine."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *parameters: Tensor) -> Tensor:
        ctx.gradient, ctx.parameters = gradient, parameters
        return gradient.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.gradient.split([p.numel() for p in ctx.parameters])
        pairs = zip(parts, ctx.parameters, strict=True)
        return None, *(part.view_as(p).to(p.dtype) for part, p in pairs)


def flat_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The gradient of ``loss`` as one fp32 vector; no hook of an engine sees it."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    parts = [
        torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)
    ]
    return torch.cat([part.float().flatten() for part in parts])


def clip_(gradient: Tensor, limit: float) -> float:
    """Scale a whole gradient to a norm of at most ``limit`` (0: leave it); the norm it had."""
    norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    if limit and norm + 1e-6 > limit:
        gradient.mul_(limit / (norm + 1e-6))
    gradient.add_(0.0)  # no -0.0, which the zeros of other ranks would make 0.0
    return norm


def unfuse(optimizer: torch.optim.Optimizer) -> None:
    """Update element by element alike. AdamW's fused kernel rounds the last few elements of a
    tensor, which fill no vector, otherwise: where they are depends on how ZeRO cuts parameters."""
    for group in optimizer.param_groups:
        group["fused"] = False
