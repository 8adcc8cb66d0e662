"""Exactly one writer of a run."""

from __future__ import annotations

from xtdist.config import CheckpointError


class FencedError(CheckpointError):
    """Another process took over this run; nothing that this one saves counts any more."""
