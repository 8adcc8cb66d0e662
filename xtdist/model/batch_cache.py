"""A key/value cache for a batch of sequences of one length: what ``model(x, cache=…)`` uses.

Generation has a store of its own (``xtdist.decode``), which is faster and takes ragged batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from xtdist.model.config import LayersConfig
from xtdist.model.stack import StackInputs
from xtdist.nn.attention.cache import Kept, KVCache, Read


class BatchCache:
    """Grows with every pass; a pass works on a ``fork``, so the older one can be used again.

    tokens: so many have been seen, and ``rows`` vectors with those prepended to them. config: of
    the model whose cache it is.
    """

    def __init__(
        self, context: Float[Tensor, "b j c"] | None = None, *, config: LayersConfig | None = None
    ) -> None:
        self.states, self.config = context, config
        self.tokens = self.rows = 0
        self._kept: dict[int, Kept] = {}
        self._crossed: dict[int, Kept] = {}

    def fork(self) -> BatchCache:
        """A cache that grows by itself; nothing is copied."""
        new = BatchCache(self.states, config=self.config)
        new.tokens, new.rows = self.tokens, self.rows
        new._kept, new._crossed = dict(self._kept), self._crossed
        return new

    @property
    def batch(self) -> int | None:
        """Sequences that are kept; None where nothing is."""
        return next((len(kept[0]) for kept in self._kept.values()), None)

    def seen(self, tokens: int, rows: int) -> None:
        """A pass over so many new tokens and vectors is over."""
        self.tokens += tokens
        self.rows += rows

    def update(self, layer: int, new: Kept) -> Sequence[Read]:
        """All that ``layer`` has kept, its new tokens last.

        Raises:
            ValueError: ``layer`` did not run for all earlier tokens.
        """
        old = self._kept.get(layer)
        if (0 if old is None else old[0].shape[2]) != self.rows:
            raise ValueError(
                "cache: an attention runs that did not run before, or not for all tokens; give "
                "the same number of loops"
            )
        kept = new if old is None else _joined(old, new)
        self._kept[layer] = kept
        return [Read(rows=slice(None), kept=kept)]

    def context(self, layer: int, project: Callable[[Tensor], Kept]) -> Sequence[Read]:
        """What cross attention ``layer`` reads, projected in the first pass."""
        if layer not in self._crossed:
            assert self.states is not None
            self._crossed[layer] = project(self.states)
        return [Read(rows=slice(None), kept=self._crossed[layer])]


def behind(cache: BatchCache, given: StackInputs, h: Float[Tensor, "b n d"]) -> StackInputs:
    """The inputs of a stack for new vectors ``h`` behind those of ``cache``."""
    pos = torch.arange(cache.rows, cache.rows + h.shape[1], device=h.device)
    return replace(given, cache=cache, pos=pos)


class LaterLayers:
    """A cache for a further pass of the same stack: its self attentions count on from ``by``."""

    def __init__(self, cache: KVCache, by: int) -> None:
        self.cache, self.by = cache, by

    def update(self, layer: int, new: Kept) -> Sequence[Read]:
        """As the cache's."""
        return self.cache.update(layer + self.by, new)

    def context(self, layer: int, project: Callable[[Tensor], Kept]) -> Sequence[Read]:
        """As the cache's: a context is the same in every pass."""
        return self.cache.context(layer, project)


def _joined(old: Kept, new: Kept) -> Kept:
    return tuple(torch.cat(both, dim=2) for both in zip(old, new, strict=True))
