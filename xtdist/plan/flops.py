"""Arithmetic of attention by the keys that are really read."""

from __future__ import annotations

from xtdist.nn.attention.projection import HeadSizes
from xtdist.train.meters.flops import flops_per_token
from xtdist.train.spec import RunSpec


def mean_keys(length: float, *, window: int | None, causal: bool) -> float:
    """That a token of a sequence of ``length`` reads: itself, and those before it (or around it) of
    which a ``window`` leaves so many (on each side)."""
    near = length if window is None else min(window + 1.0, length)  # with itself, on one side
    # Of one side: the first ``near`` tokens read 1, 2, … keys, all others ``near``.
    side = (near * (near + 1) / 2 + (length - near) * near) / length
    return side if causal else 2 * side - 1


def read_flops_per_token(spec: RunSpec, document: float | None) -> float | None:
    """As :func:`flops_per_token`, but of scores only those that causality, windows and, where they
    are masked, documents leave. ``document``: their mean length; None: not known."""
    model, length = spec.model, spec.data.seq_len
    whole = flops_per_token(model, length)
    if whole is None:
        return None
    config, sizes = model.attention, HeadSizes.of(model.heads, model.attention)
    row = float(length)
    if spec.data.documents == "masked" and document is not None:
        row = max(min(row, document), 1.0)
    read = mean_keys(row, window=config.window, causal=model.causal)
    counted = length if config.window is None else min(length, config.window + 1)
    layers = sum(model.execution.count(i) for i, kind in enumerate(model.kinds) if kind == "a")
    loop = model.loop
    passes = loop.max_steps if loop is not None and loop.kind == "looped" else 1
    each = 6.0 * sizes.heads * (sizes.dim + sizes.value_dim)
    return whole - passes * layers * each * (counted - read)
