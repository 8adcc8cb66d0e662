"""Who may read whom: rules, and the table that a backend without rules needs. True = may attend."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Visible:
    """Which of j keys each of i queries may read. All rules must allow it.

    The queries are the last i of the keys where a rule compares the two (``causal``, ``window``,
    ``documents``). A query that may read nothing reads zero.

    causal: no key after the query, except those of the first ``prefix`` (b,).
    window: no key more than so many places before the query.
    keys: (b, j) the real keys; the rest is padding.
    documents: (b, j) numbers; query and key must have the same.
    table: (b|1, h|1, i, j) whatever else is wanted.
    lead: so many leading keys (memories) are outside of every rule: all may read them, or those of
    them that ``lead_keys`` (b, lead) says. The other tensors don't count them.
    """

    causal: bool = False
    window: int | None = None
    prefix: Int[Tensor, " b"] | None = None
    keys: Bool[Tensor, "b j"] | None = None
    documents: Int[Tensor, "b j"] | None = None
    table: Bool[Tensor, "b h i j"] | None = None
    lead: int = 0
    lead_keys: Bool[Tensor, "b e"] | None = None

    @property
    def only_causal(self) -> bool:
        """No rule but, perhaps, causality: backends know that one themselves."""
        return (
            self.window is None
            and self.prefix is None
            and self.keys is None
            and self.documents is None
            and self.table is None
            and self.lead_keys is None
        )

    @property
    def may_hide_all(self) -> bool:
        """Some query may be left without any key."""
        if self.lead and self.lead_keys is None:
            return False
        return any(rule is not None for rule in (self.keys, self.documents, self.table))

    def after(self, lead: int, keys: Bool[Tensor, "b e"] | None = None) -> Visible:
        """The same rules behind ``lead`` more keys that all may read, or ``keys`` of them."""
        old = self.lead_keys
        if keys is not None and old is None:
            old = keys.new_ones(len(keys), self.lead)
        if keys is None and old is not None:
            keys = old.new_ones(len(old), lead)
        both = None if keys is None or old is None else torch.cat((keys, old), dim=1)
        return replace(self, lead=self.lead + lead, lead_keys=both)

    def cut(self, start: int, stop: int, first: int) -> Visible:
        """The rules for the queries from ``start`` and the keys from ``first`` up to ``stop``."""
        keys = slice(first, stop)
        return replace(
            self,
            prefix=None if self.prefix is None else self.prefix - first,
            keys=None if self.keys is None else self.keys[:, keys],
            documents=None if self.documents is None else self.documents[:, keys],
            table=None if self.table is None else self.table[..., start:stop, keys],
        )

    def dense(self, i: int, j: int, device: torch.device) -> Bool[Tensor, "b h i j"] | None:
        """The rules as a table, as small as they allow (1 where all agree); None: no restriction.

        ``j`` counts the leading keys too.
        """
        j -= self.lead
        allowed: Tensor | None = None
        if self.causal or self.window is not None:
            ahead = distance(i, j, device)
        if self.causal:
            allowed = rearrange(ahead >= 0, "i j -> 1 1 i j")
            if self.prefix is not None:
                place = torch.arange(j, device=device)
                allowed = allowed | (place < rearrange(self.prefix, "b -> b 1 1 1"))
        if self.window is not None:
            allowed = _both(allowed, rearrange(ahead <= self.window, "i j -> 1 1 i j"))
        if self.keys is not None:
            allowed = _both(allowed, rearrange(self.keys, "b j -> b 1 1 j"))
        if self.documents is not None:
            of_query = rearrange(self.documents[:, j - i :], "b i -> b 1 i 1")
            allowed = _both(allowed, of_query == rearrange(self.documents, "b j -> b 1 1 j"))
        allowed = _both(allowed, self.table)
        if self.lead == 0 or (allowed is None and self.lead_keys is None):
            return allowed
        if allowed is None:
            allowed = torch.ones(1, 1, 1, j, dtype=torch.bool, device=device)
        if self.lead_keys is None:
            return F.pad(allowed, (self.lead, 0), value=True)
        lead = rearrange(self.lead_keys, "b e -> b 1 1 e")
        b, h, rows = max(len(lead), len(allowed)), allowed.shape[1], allowed.shape[2]
        return torch.cat((lead.expand(b, h, rows, -1), allowed.expand(b, -1, -1, -1)), dim=-1)

    def wherever(self, i: int, j: int, device: torch.device) -> Bool[Tensor, "b h i j"] | None:
        """Which tokens each query may read by the rules that don't ask where they stand, as small
        as these allow (1 where all agree); None: all of them. Causality and a window cut a range
        around the query; what is summed from a key to its query has to leave out the tokens
        between the two that these rules hide."""
        return replace(self, causal=False, window=None, prefix=None).dense(i, j, device)


EVERYTHING = Visible()
"""No restriction."""


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a & b


def distance(i: int, j: int, device: torch.device) -> Int[Tensor, "i j"]:
    """How far each key lies behind each query, the queries being the last i of j places."""
    key = torch.arange(j, device=device)
    return rearrange(key[j - i :], "i -> i 1") - key
