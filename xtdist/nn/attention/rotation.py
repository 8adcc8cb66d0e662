"""What turns queries and keys by their positions, whatever the kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from xtdist.nn.position.polar import PolarPosition, PolarTable
from xtdist.nn.position.rotary import RotaryTables, rotate


class Rotation(Protocol):
    """Turns queries and keys; the result may have more channels."""

    def queries(self, q: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n e"]:
        """Turned queries."""

    def keys(self, k: Float[Tensor, "b hk n d"]) -> Float[Tensor, "b hk n e"]:
        """Turned keys."""


@dataclass(frozen=True)
class RotaryRotation:
    """Rotary positions by tables that all layers share."""

    tables: RotaryTables

    def queries(self, q: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """Turned queries."""
        return rotate(q, self.tables.query)

    def keys(self, k: Float[Tensor, "b hk n d"]) -> Float[Tensor, "b hk n d"]:
        """Turned keys."""
        return rotate(k, self.tables.key)


@dataclass(frozen=True)
class PolarRotation:
    """Polar positions by a table and a bias that all layers share."""

    polar: PolarPosition
    table: PolarTable

    def queries(self, q: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n e"]:
        """Queries on their circles."""
        return self.polar.queries(q, self.table)

    def keys(self, k: Float[Tensor, "b hk n d"]) -> Float[Tensor, "b hk n e"]:
        """Keys on their circles."""
        return self.polar(k, self.table)
