"""What goes into a stack of layers beside its tokens, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xtdist.model.sublayer import AttentionRecord
from xtdist.nn.attention.cache import KVCache
from xtdist.nn.attention.inputs import AddedKeyValues
from xtdist.nn.aux import AuxLoss


@dataclass(frozen=True, kw_only=True)
class StackInputs:
    """Optional inputs of a stack. Masks: True = may attend, or a real token.

    mask: (b, n) real tokens; the rest is padding, which nobody reads.
    key_mask: (b, n) tokens that others may read.
    attn_mask: (i, j), (h, i, j) or (b, h, i, j) who may read whom.
    attn_bias: (b|1, h|1, i, j) added to the scores.
    documents: (b, n) numbers: tokens read those with their own number only.
    prefix: (b,) so many first tokens see each other (prefix decoder).
    pos: (b, n) or (n,) positions; without it 0, 1, 2, ….
    context, context_mask, context_pos: (b, j, c), (b, j), (b, j)|(j,) what cross attention reads.
    condition: (b, c) or (b, n, c) for adaptive norms. inject: (b, n, d)|(b, d) added to the input
    of every sublayer.
    memories, memory_masks: for each self attention (b, m, d), (b, m) hidden states before the
    tokens, from an earlier segment. added: for each self attention keys and values, or None.
    factors: for each feed-forward (b, n, d) a factor on its output.
    cache: of earlier tokens; the tokens are then new ones only, and ``pos`` is needed.
    execute: numbers of the sublayers to run, instead of the config's.
    keep: hand back hidden states and, with ``scores``, attentions.
    """

    mask: Bool[Tensor, "b n"] | None = None
    key_mask: Bool[Tensor, "b n"] | None = None
    attn_mask: Bool[Tensor, "..."] | None = None
    attn_bias: Float[Tensor, "b h i j"] | None = None
    documents: Int[Tensor, "b n"] | None = None
    prefix: Int[Tensor, " b"] | None = None
    pos: Int[Tensor, "b n"] | Int[Tensor, " n"] | None = None
    context: Float[Tensor, "b j c"] | None = None
    context_mask: Bool[Tensor, "b j"] | None = None
    context_pos: Int[Tensor, "b j"] | None = None
    condition: Float[Tensor, "b c"] | Float[Tensor, "b n c"] | None = None
    inject: Float[Tensor, "b n d"] | Float[Tensor, "b d"] | None = None
    memories: Sequence[Float[Tensor, "b m d"] | None] = ()
    memory_masks: Sequence[Bool[Tensor, "b m"] | None] = ()
    added: Sequence[AddedKeyValues | None] = ()
    factors: Sequence[Float[Tensor, "b n d"]] = ()
    cache: KVCache | None = None
    execute: Sequence[int] | None = None
    keep: bool = False
    scores: bool = True

    @property
    def keeps_scores(self) -> bool:
        """Whether attentions are handed back."""
        return self.keep and self.scores and self.cache is None


@dataclass(frozen=True, kw_only=True)
class StackOutput:
    """The hidden states (b, n, d); the auxiliary losses; and, where kept, the input of each self
    attention (of its queries, where keys and values have others), the output of each block, and
    every attention."""

    hidden: Float[Tensor, "b n d"]
    aux: tuple[AuxLoss, ...] = ()
    hiddens: tuple[Float[Tensor, "b n d"], ...] = ()
    block_hiddens: tuple[Float[Tensor, "b n d"], ...] = ()
    attentions: tuple[AttentionRecord, ...] = field(default=())


class RealFirst:
    """Puts the real tokens of each row first, in their order, and everything back afterwards.

    A causal stack then needs no mask at all: padding stands behind every real token.
    """

    def __init__(self, real: Bool[Tensor, "b n"]) -> None:
        self.order = torch.argsort((~real).to(torch.uint8), dim=1, stable=True)
        self.back = torch.argsort(self.order, dim=1, stable=True)

    def sort(self, x: Tensor | None) -> Tensor | None:
        """(b, n, …) with the real tokens first."""
        return None if x is None else _take(x, self.order)

    def restore(self, x: Tensor) -> Tensor:
        """The way back."""
        return _take(x, self.back)

    def sort_pairs(self, table: Tensor | None) -> Tensor | None:
        """(b|1, h|1, i, j) by the order of the tokens, the last of the j keys."""
        return None if table is None else _take_pairs(table, self.order, keys=True)

    def restore_pairs(self, table: Tensor, *, keys: bool) -> Tensor:
        """The way back; ``keys``: the last keys are the tokens too."""
        return _take_pairs(table, self.back, keys=keys)


def unsorted(record: AttentionRecord, sorting: RealFirst | None) -> AttentionRecord:
    """Scores and weights with queries, and keys of a self attention, in their own order."""
    if sorting is None:
        return record
    own = record.kind == "a"
    return AttentionRecord(
        record.kind,
        sorting.restore_pairs(record.scores, keys=own),
        sorting.restore_pairs(record.weights, keys=own),
    )


def _take_pairs(table: Tensor, order: Int[Tensor, "b n"], *, keys: bool) -> Tensor:
    b, n = order.shape
    h, j = table.shape[1], table.shape[3]
    rows = rearrange(order, "b n -> b 1 n 1").expand(b, h, n, j)
    table = table.expand(b, -1, n, -1).gather(2, rows)
    if not keys:
        return table
    first, own = table[..., : j - n], table[..., j - n :]
    columns = rearrange(order, "b n -> b 1 1 n").expand(b, h, n, n)
    return torch.cat((first, own.gather(3, columns)), dim=-1)


def _take(x: Tensor, order: Int[Tensor, "b n"]) -> Tensor:
    if x.ndim == 2:
        return x.gather(1, order)
    return x.gather(1, repeat(order, "b n -> b n d", d=x.shape[-1]))


def as_table(mask: Bool[Tensor, "..."] | None) -> Bool[Tensor, "b h i j"] | None:
    """An attention mask of 2, 3 or 4 dimensions with all four."""
    if mask is None:
        return None
    return rearrange(mask, "h i j -> 1 h i j") if mask.ndim == 3 else _four(mask)


def _four(mask: Tensor) -> Tensor:
    return rearrange(mask, "i j -> 1 1 i j") if mask.ndim == 2 else mask
