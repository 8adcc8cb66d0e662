"""Slices of flattened parameters: the unit in which ranks hold, save and read state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Piece:
    """Part of a parameter in a flat tensor.

    Attributes:
        name: of the parameter in the module.
        shape: of the whole parameter.
        start: first element of the part, in the flattened parameter.
        at: first element of the part, in the flat tensor.
        numel: elements.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    at: int
    numel: int

    @property
    def whole(self) -> int:
        """Elements of the whole parameter."""
        return math.prod(self.shape)

    def part(self, rank: int, world: int) -> Piece:
        """The ``rank``-th of ``world`` nearly equal parts of this piece."""
        low, high = self.numel * rank // world, self.numel * (rank + 1) // world
        return replace(self, start=self.start + low, at=self.at + low, numel=high - low)


def gap(spans: Iterable[tuple[int, int]], numel: int) -> str | None:
    """Why ``spans`` of (start, length) do not cover 0 … numel exactly once, or None if they do."""
    reached = 0
    for start, length in sorted(spans):
        if start < reached:
            return f"element {start} is there twice"
        if start > reached:
            return f"element {reached} is missing"
        reached = start + length
    if reached == numel:
        return None
    return f"element {reached} is missing" if reached < numel else f"it has only {numel} elements"
