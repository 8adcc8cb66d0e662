"""How many parameters a model has, and where."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from xtdist.nn.feedforward.moe import MoE

PARTS = ("embedding", "attention", "feed-forward", "norms", "head", "other")
_SUBLAYER = re.compile(r"layers\.sublayers\.(\d+)\.")


@dataclass(frozen=True)
class Parameters:
    """Counts; a tensor that is used twice is one.

    Attributes:
        parts: by :data:`PARTS`.
        total: of all of them.
        trained: of those that an optimizer changes.
        active: of those that a token goes through: of a mixture's experts the chosen ones.
        largest: of one tensor.
        layers: (part, count) of each sublayer in order, its norms not counted.
    """

    parts: Mapping[str, int]
    total: int
    trained: int
    active: int
    largest: int
    layers: tuple[tuple[str, int], ...] = ()


def count_parameters(module: nn.Module, *, kinds: Sequence[str]) -> Parameters:
    """Of ``module``, an objective around a network whose sublayers are of ``kinds`` (a, c, f)."""
    parts = dict.fromkeys(PARTS, 0)
    layers = [0] * len(kinds)
    trained = largest = 0
    for name, p in module.named_parameters():
        part = _part(name, kinds)
        parts[part] += p.numel()
        if part in ("attention", "feed-forward") and (found := _SUBLAYER.search(name)):
            layers[int(found[1])] += p.numel()
        trained += p.numel() * p.requires_grad
        largest = max(largest, p.numel())
    total = sum(parts.values())
    idle = sum(_idle(m) for m in module.modules() if isinstance(m, MoE))
    names = ["feed-forward" if kind == "f" else "attention" for kind in kinds]
    each = tuple(zip(names, layers, strict=True))
    return Parameters(parts, total, trained, total - idle, largest, each)


def _part(name: str, kinds: Sequence[str]) -> str:
    above = name.split(".")[:-1]
    if any("norm" in word for word in above):
        return "norms"
    if found := _SUBLAYER.search(name):
        of_kind = "feed-forward" if kinds[int(found[1])] == "f" else "attention"
        return of_kind if "branch" in above else "other"
    if any("embedding" in word for word in above):
        return "embedding"
    return "head" if "head" in above else "other"


def _idle(mixture: MoE) -> int:
    """Parameters of the experts that a token does not go through."""
    experts = mixture.proj_in.numel() + mixture.proj_out.numel()
    count = mixture.router.out_features
    return experts * (count - mixture.config.top_k) // count
