"""Counts of documents by length, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PER_DOUBLING = 4
BINS = 31 * PER_DOUBLING + 1
"""Bin k holds lengths from 2^(k/4) tokens to below 2^((k+1)/4)."""


def count_lengths(lengths: NDArray[np.int64]) -> tuple[int, ...]:
    """How many of the lengths (in tokens, >= 1) fall into each bin."""
    edges = bin_edges()[1:-1]
    found = np.bincount(np.searchsorted(edges, lengths, side="right"), minlength=BINS)
    return tuple(found.tolist())


def bin_edges() -> NDArray[np.float64]:
    """Lower edge of each bin, and the upper one of the last."""
    edges: NDArray[np.float64] = 2.0 ** (np.arange(BINS + 1) / PER_DOUBLING)
    return edges


def draw_lengths(counts: Sequence[int], path: Path) -> None:
    """Draw the histogram as a PNG, lengths on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    edges = bin_edges()
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    used = np.flatnonzero(counts)
    shown = slice(used[0], used[-1] + 1)
    axes.bar(
        edges[:-1][shown], counts[shown], np.diff(edges)[shown], align="edge", edgecolor="white"
    )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens in a document, with end-of-text")
    axes.set_ylabel("documents")
    axes.set_title(f"{sum(counts):,} documents")
    figure.savefig(path, dpi=120, metadata={"Software": None})
