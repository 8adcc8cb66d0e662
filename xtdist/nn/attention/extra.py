"""Keys, values and scores that do not come from the layer's tokens."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.nn.attention.inputs import AddedKeyValues
from xtdist.nn.attention.masks import Visible
from xtdist.nn.attention.projection import HeadNorms, HeadSizes
from xtdist.nn.linear import Linear


def prepend(
    k: Tensor, v: Tensor, extra: AddedKeyValues, visible: Visible
) -> tuple[Tensor, Tensor, Visible]:
    """Keys and values from elsewhere before the layer's own; heads are repeated to match."""
    extra_k, extra_v, mask = extra
    if extra_k.shape[1] != k.shape[1]:
        times = k.shape[1] // extra_k.shape[1]
        extra_k, extra_v = (
            repeat(t, "b h e d -> b (h g) e d", g=times) for t in (extra_k, extra_v)
        )
    visible = visible.after(extra_k.shape[2], mask)
    return torch.cat((extra_k, k), dim=2), torch.cat((extra_v, v), dim=2), visible


class MemoryKeyValues(nn.Module):
    """Learned keys and values that every token may read (1907.01470)."""

    def __init__(self, sizes: HeadSizes, count: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(sizes.kv_heads, count, sizes.dim))
        self.values = nn.Parameter(torch.empty(sizes.kv_heads, count, sizes.value_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw them: standard normal, the size of normed keys."""
        self.keys.normal_(generator=generator)
        self.values.normal_(generator=generator)

    def forward(self, k: Tensor, v: Tensor, norms: HeadNorms) -> tuple[Tensor, Tensor]:
        """The keys and values with these in front; cosine attention makes them unit too."""
        keys = self.keys if norms.unit_key is None else norms.unit_key(self.keys)
        return (
            torch.cat((repeat(keys.to(k.dtype), "h e d -> b h e d", b=len(k)), k), dim=2),
            torch.cat((repeat(self.values.to(v.dtype), "h e d -> b h e d", b=len(v)), v), dim=2),
        )


class Sink(nn.Module):
    """A learned score for each head that competes with the keys and reads nothing (gpt-oss)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start at 0."""
        self.scores.zero_()

    def forward(self) -> Float[Tensor, " h"]:
        """A view: the parameter itself may be gone when this module is done (ZeRO-3)."""
        return self.scores[:]


class ValueMix(nn.Module):
    """How much of a token's own values to keep beside the first layer's, for each head."""

    def __init__(self, dim: int, kv_heads: int) -> None:
        super().__init__()
        self.proj = Linear(dim, kv_heads, bias=True)

    def forward(self, x: Float[Tensor, "b n m"]) -> Float[Tensor, "b hk n 1"]:
        return rearrange(self.proj(x).sigmoid(), "b n h -> b h n 1")
