"""Where a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Position:
    """How far a run is. ``tokens``: target tokens trained on so far."""

    step: int = 0
    tokens: int = 0
