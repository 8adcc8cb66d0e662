"""Forget gates along the sequence, https://openreview.net/forum?id=q2Lnyegkr8.

Both variants have ``project(x) -> (row, kept)`` and ``bias(row, kept, seen)``: ``kept`` is what a
token leaves behind beside its key and value, ``row`` what its own query needs. The bias of a pair
depends on the tokens between the two alone, so cached = uncached, also with a cache of bounded
length; and of those on the ones that the query may read alone: padding and other documents between
the two forget nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
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

    Bidirectional: a second set of gates for keys that come later, Σ over (i, j]. In a causal stack
    a key that comes later (in a prefix) gets −Σ over (i, j], as in x-transformers.
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
        self,
        row: Float[Tensor, "b g i 1"],
        kept: Float[Tensor, "b g j 1"],
        seen: Bool[Tensor, "b _h _i j"] | None = None,
    ) -> Float[Tensor, "b h i j"]:
        """What the last i of j tokens add to their scores, fp32. ``seen``: which tokens each of
        the i may read, wherever they stand; None = all."""
        gates, i = rearrange(kept.float(), "b g j 1 -> b g 1 j"), row.shape[2]
        if self.causal:
            return _between(gates, seen, i=i)
        past, future = (_between(part, seen, i=i) for part in gates.chunk(2, dim=1))
        before = kept.shape[2] - i
        return past.tril(before) - future.triu(before)


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
        self,
        row: Float[Tensor, "b h i e"],
        kept: Float[Tensor, "b h j e"],
        seen: Bool[Tensor, "b _h _i j"] | None = None,
    ) -> Float[Tensor, "b h i j"]:
        """What the last i of j tokens add to their scores, fp32; 0 for itself and later keys.
        ``seen`` as above."""
        products = einsum(row.float(), kept.float(), "b h i e, b h j e -> b h i j")
        log_gate = F.logsigmoid(products * self.scale) * self.log_scale
        log_gate = log_gate.tril(kept.shape[2] - row.shape[2] - 1)
        if seen is not None:
            log_gate = log_gate.masked_fill(~seen, 0.0)
        return log_gate.flip(-1).cumsum(dim=-1).flip(-1)


def _between(
    gates: Float[Tensor, "b h 1 j"], seen: Bool[Tensor, "b _h _i j"] | None, *, i: int
) -> Float[Tensor, "b h i j"]:
    """Σ of the gates in (key, query] that the query sees; minus that in (query, key] where the key
    comes later. A running sum for all queries, or one for each where they see different tokens."""
    if seen is not None:
        gates = gates.masked_fill(~seen, 0.0)
    total, before = gates.cumsum(dim=-1), gates.shape[-1] - i
    if total.shape[2] == 1:
        at_query = rearrange(total[..., before:], "b h 1 i -> b h i 1")
    else:
        at_query = rearrange(total.diagonal(before, dim1=2, dim2=3), "b h i -> b h i 1")
    return at_query - total
