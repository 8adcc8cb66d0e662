"""The seam between attention layers and a decoder that keeps what they leave behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

Kept = tuple[Float[Tensor, "1 _h n _d"], ...]
"""What an attention layer leaves behind for each token, one tensor for each kind: keys (already
rotated) and values, or a latent and its rotated key, with heads and channels of its own."""


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """How much a model leaves behind for each token.

    ``layers``: for each attention layer in order of execution, (heads, channels) of each tensor.
    ``window``: keys that a query reaches back, itself excluded, where every layer has such a limit.
    ``refused``: why the model can't be decoded with a cache, or nothing.
    """

    layers: tuple[tuple[tuple[int, int], ...], ...]
    window: int | None = None
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What the new tokens of one sequence read.

    ``rows``: where they stand among the step's n tokens.
    ``kept``: what the layer kept of this sequence, oldest first, the new tokens last.
    ``first``: the position of the oldest; the others follow without a gap.
    """

    rows: slice
    kept: Kept
    first: int = 0


class KVCache(Protocol):
    """One step's view of a store: it owns the layout, the model owns the arithmetic."""

    def update(self, layer: int, new: Kept) -> Sequence[Read]:
        """Store what ``layer`` made of the step's n tokens; each token belongs to one read."""

    def context(
        self, layer: int, project: Callable[[Float[Tensor, "1 j d"]], Kept]
    ) -> Sequence[Read]:
        """What cross-attention ``layer`` reads: ``project`` of each sequence's context, made once
        and kept. All of it may be read, whatever the positions."""
