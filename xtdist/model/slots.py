"""Where tokens stand when others are put before or between them."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from xtdist.model.stack import StackInputs


class Slots:
    """A sequence of s vectors (``prepended`` ones, then n tokens) behind ``cls`` and among
    ``memories`` learned vectors, which come once or before ``every`` so many others.

    What a caller gives for n tokens is spread over all places; what comes out is taken from them.
    """

    def __init__(
        self, tokens: int, *, prepended: int, cls: int = 0, memories: int = 0, every: int | None
    ) -> None:
        self.tokens, self.prepended, self.cls, self.memories = tokens, prepended, cls, memories
        self.every = every if memories else None
        body = cls + prepended + tokens
        self.groups = 1 if self.every is None else -(-body // self.every)
        self.padding = 0 if self.every is None else self.groups * self.every - body

    @property
    def lead(self) -> int:
        """Vectors before the tokens, where memories come once."""
        return self.memories + self.cls + self.prepended

    def join(
        self, x: Float[Tensor, "b s d"], cls: Tensor | None, memory: Tensor | None
    ) -> Float[Tensor, "b l d"]:
        """All vectors in their places."""
        x = x if cls is None else torch.cat((cls, x), dim=1)
        if memory is None:
            return x
        if self.every is None:
            return torch.cat((memory, x), dim=1)
        x = rearrange(F.pad(x, (0, 0, 0, self.padding)), "b (g e) d -> b g e d", g=self.groups)
        memory = repeat(memory, "b m d -> b g m d", g=self.groups)
        return rearrange(torch.cat((memory, x), dim=2), "b g e d -> b (g e) d")

    def split(self, x: Float[Tensor, "b l d"]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The sequence, the class vectors and the memories: the way back of ``join``."""
        memory: Tensor | None = None
        if self.memories:
            x = rearrange(x, "b (g e) d -> b g e d", g=self.groups)
            memory, x = x[:, :, : self.memories], x[:, :, self.memories :]
            memory = rearrange(memory, "b g m d -> b (g m) d")
            x = rearrange(x, "b g e d -> b (g e) d")
        x = x[:, : x.shape[1] - self.padding]
        return x[:, self.cls :], x[:, : self.cls] if self.cls else None, memory

    def order(self, device: torch.device) -> Int[Tensor, " l"]:
        """For each place the number in the sequence; s for what is not of the sequence."""
        s = self.prepended + self.tokens
        body = F.pad(torch.arange(s, device=device), (self.cls, self.padding), value=s)
        groups = rearrange(body, "(g e) -> g e", g=self.groups)
        return rearrange(F.pad(groups, (self.memories, 0), value=s), "g e -> (g e)")

    def spread(self, value: Tensor, *, axis: int, fill: float, before: int = 0) -> Tensor:
        """``value`` of s places along ``axis`` in its new places, ``fill`` elsewhere; ``before``
        of them stand in front and stay there."""
        order = self.order(value.device)
        if before:
            order = torch.cat((torch.arange(before, device=value.device), order + before))
        size = list(value.shape)
        size[axis] = 1
        return torch.cat((value, value.new_full(size, fill)), dim=axis).index_select(axis, order)

    def of_tokens(self, value: Tensor, *, axis: int, fill: float, before: int = 0) -> Tensor:
        """The same for a ``value`` that is given for the n tokens alone."""
        size = list(value.shape)
        size[axis] = self.prepended
        parts = value.split([before, value.shape[axis] - before], dim=axis)
        value = torch.cat((parts[0], value.new_full(size, fill), parts[1]), dim=axis)
        return self.spread(value, axis=axis, fill=fill, before=before)

    def inputs(
        self, given: StackInputs, mask: Tensor | None, *, causal: bool = False
    ) -> StackInputs:
        """The inputs of a stack for all places; ``mask`` is of the s vectors of the sequence."""
        if given.documents is not None:
            given = self._with_table(given, given.documents, causal=causal)
        n, memories = self.tokens, next((m for m in given.memories if m is not None), None)
        before = 0 if memories is None else memories.shape[1]
        table, bias, of_tokens = given.attn_mask, given.attn_bias, self.of_tokens
        if table is not None:
            table = of_tokens(table, axis=table.ndim - 2, fill=True)
            table = of_tokens(table, axis=table.ndim - 1, fill=True, before=before)
        if bias is not None:
            bias = of_tokens(of_tokens(bias, axis=2, fill=0.0), axis=3, fill=0.0, before=before)
        keys = given.key_mask
        return replace(
            given,
            mask=None if mask is None else self.spread(mask, axis=1, fill=True),
            key_mask=None if keys is None else of_tokens(keys, axis=1, fill=True),
            attn_mask=table,
            attn_bias=bias,
            prefix=None if given.prefix is None else given.prefix + self.lead,
            pos=self._positions(given.pos),
            condition=self._per_token(given.condition, n),
            inject=self._per_token(given.inject, n),
            factors=[of_tokens(f, axis=1, fill=1.0) for f in given.factors],
        )

    def _with_table(self, given: StackInputs, documents: Tensor, *, causal: bool) -> StackInputs:
        """Documents as a table: all may read the memories, which read no document."""
        if not causal or self.every is not None or self.cls or self.prepended:
            raise ValueError(
                "documents: vectors that stand beside the tokens would carry what is in one "
                "document to others; only memory tokens before a causal stack's tokens would not"
            )
        same = rearrange(documents, "b i -> b 1 i 1") == rearrange(documents, "b j -> b 1 1 j")
        table = given.attn_mask
        if table is not None:
            same = same & (rearrange(table, "h i j -> 1 h i j") if table.ndim == 3 else table)
        return replace(given, attn_mask=same, documents=None)

    def _per_token(self, value: Tensor | None, n: int) -> Tensor | None:
        """A ``value`` that may be the same for all tokens."""
        if value is None or value.ndim == 2 or value.shape[1] != n:
            return value
        return self.of_tokens(value, axis=1, fill=0.0)

    def _positions(self, pos: Tensor | None) -> Tensor | None:
        """The tokens' positions, moved up by the vectors before them."""
        if pos is None:
            return None
        if self.every is not None:
            raise ValueError(
                "pos: has no meaning with memory tokens in between; leave out pos or "
                "memory_tokens_interspersed_every"
            )
        lead = torch.arange(self.lead, device=pos.device, dtype=pos.dtype)
        return torch.cat((lead.expand(*pos.shape[:-1], -1), pos + self.lead), dim=-1)
