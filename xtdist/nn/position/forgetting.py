"""Forget gates along the sequence, https://openreview.net/forum?id=q2Lnyegkr8.

Both variants have ``project(x) -> (row, kept)`` and ``bias(row, kept)``: ``kept`` is what a token
leaves behind beside its key and value, ``row`` what its own query needs. The bias of a pair depends
on the tokens between the two alone, so cached = uncached, also with a cache of bounded length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.nn.linear import Linear


class _ForgetGate(Linear):
    """A linear layer whose biases start at ``bias_init``: the gates start nearly open."""

    def __init__(self, dim: int, gates: int, *, bias_init: float) -> None:
        self.bias_init = bias_init
        super().__init__(dim, gates, bias=True)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights again; biases at their start value."""
        super().reset_parameters(generator)
        self.bias.fill_(self.bias_init)


class Forgetting(nn.Module):
    """bias(i, j) = Σ log f over the tokens in (j, i], f = sigmoid(linear(x)) of each head.

    Bidirectional: a second set of gates for keys that come later, Σ over (i, j].
    """

    def __init__(
        self, dim: int, *, heads: int, causal: bool, bias_init: float, log_scale: float
    ) -> None:
        super().__init__()
        self.causal, self.log_scale = causal, log_scale
        self.to_gates = _ForgetGate(dim, heads * (1 if causal else 2), bias_init=bias_init)

    def project(
        self, x: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b g n 1"], Float[Tensor, "b g n 1"]]:
        """log f of each token, which is both what its query needs and what it leaves behind; g =
        heads, or twice as many if bidirectional."""
        log_gate = F.logsigmoid(self.to_gates(x).float()) * self.log_scale
        kept = rearrange(log_gate, "b n g -> b g n 1").to(x.dtype)
        return kept, kept

    def bias(
        self, row: Float[Tensor, "b g i 1"], kept: Float[Tensor, "b g j 1"]
    ) -> Float[Tensor, "b h i j"]:
        """What the last i of j tokens add to their scores, fp32. Later keys of a causal stack get
        numbers without meaning."""
        total = rearrange(kept.float().cumsum(dim=2), "b g j 1 -> b g j")
        of_query = total[..., total.shape[-1] - row.shape[2] :]
        between = rearrange(of_query, "b g i -> b g i 1") - rearrange(total, "b g j -> b g 1 j")
        if self.causal:
            return between
        past, future = between.chunk(2, dim=1)
        return past.tril() - future.triu()


class ForgettingPerRow(nn.Module):
    """bias(i, j) = Σ log f(i, l) over the tokens l in [j, i), with f(i, l) = sigmoid(q_i · k_l /
    √d) from queries and keys of their own: what is forgotten depends on the query. Causal."""

    def __init__(self, dim: int, *, heads: int, dim_head: int, log_scale: float) -> None:
        super().__init__()
        self.heads, self.log_scale, self.scale = heads, log_scale, dim_head**-0.5
        self.to_gates = Linear(dim, 2 * heads * dim_head)

    def project(
        self, x: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n e"]]:
        """The gates' query of each token and, to be kept, its key."""
        row, kept = rearrange(self.to_gates(x), "b n (two h e) -> two b h n e", two=2, h=self.heads)
        return row, kept

    def bias(
        self, row: Float[Tensor, "b h i e"], kept: Float[Tensor, "b h j e"]
    ) -> Float[Tensor, "b h i j"]:
        """What the last i of j tokens add to their scores, fp32; 0 for itself and later keys."""
        products = einsum(row.float(), kept.float(), "b h i e, b h j e -> b h i j")
        log_gate = F.logsigmoid(products * self.scale) * self.log_scale
        log_gate = log_gate.tril(kept.shape[2] - row.shape[2] - 1)
        return log_gate.flip(-1).cumsum(dim=-1).flip(-1)
