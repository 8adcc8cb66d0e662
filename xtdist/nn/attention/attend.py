"""What a backend of attention is told, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor

from xtdist.nn.attention.masks import EVERYTHING, Visible
from xtdist.nn.attention.scores import ScoreMods


@dataclass(frozen=True, kw_only=True)
class Attend:
    """How queries read.

    bias: (b|1, h, i, j) added to the scaled scores, for the keys behind ``visible.lead`` ones.
    sink: (h,) scores of an extra key that reads nothing.
    dropout: the probability to drop a weight, 0 outside of training.
    memo: tables made of ``visible`` and ``bias`` so far, where other layers have the same two.
    mods, previous, keep_scores: for the eager backend alone: what happens to scores, the scores of
    an earlier layer to add, whether to hand back this layer's.
    """

    scale: float
    visible: Visible = EVERYTHING
    bias: Float[Tensor, "b h i j"] | None = None
    sink: Float[Tensor, " h"] | None = None
    dropout: float = 0.0
    memo: dict[tuple[object, ...], Tensor | None] | None = None
    mods: ScoreMods | None = None
    previous: Float[Tensor, "b h i j"] | None = None
    keep_scores: bool = False

    def after(self, scores: Tensor | None, *, keep: bool) -> Attend:
        """The same with an earlier layer's scores to add; ``keep``: hand back this layer's."""
        if scores is None and not keep:
            return self
        return replace(self, previous=scores, keep_scores=keep)


def remembered(how: Attend, name: str, make: Callable[[], Tensor | None]) -> Tensor | None:
    """``make()``, or what another layer with the same rules and bias made."""
    if how.memo is None:
        return make()
    key = (name, how.visible.window, how.visible.lead)
    if key not in how.memo:
        how.memo[key] = make()
    return how.memo[key]


class Reading(NamedTuple):
    """What the queries read, and, where kept, the scores and weights (b h i j) behind it in fp32:
    one of each, or with a cache one for each sequence."""

    out: Float[Tensor, "b h i d"]
    scores: tuple[Tensor, ...] = ()
    weights: tuple[Tensor, ...] = ()


class Backend(Protocol):
    """Query head i reads key/value head i // (h // hk)."""

    def __call__(
        self,
        q: Float[Tensor, "b h i d"],
        k: Float[Tensor, "b hk j d"],
        v: Float[Tensor, "b hk j dv"],
        how: Attend,
    ) -> Reading: ...
