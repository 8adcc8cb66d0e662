"""The interface of residual policies."""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

Carry = tuple[Tensor, ...]


class Residual(nn.Module):
    """How one branch reads from the residual stream and writes back.

    >>> x, carry = residual(stream)             # read
    >>> stream = residual(branch(x), carry)     # write

    The stream is (b n d), or (b s n d) with s > 1 streams; x is (b n d), or (3 b n d) where
    queries, keys and values have views of their own. ``mask`` True = a real token; only policies
    that look along the sequence use it. Both steps go through the module call, so that whatever
    hangs on modules (gathering of sharded weights) sees them. ``causal_safe`` is False where a
    token's output depends on later tokens.
    """

    causal_safe: bool = True

    def forward(
        self,
        x: Float[Tensor, "b *s n d"],
        carry: Carry | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> Any:
        """Read without a ``carry``, write with the one that read returned."""
        return self.read(x) if carry is None else self.write(x, carry, mask)

    def read(self, stream: Float[Tensor, "b *s n d"]) -> tuple[Float[Tensor, "*v b n d"], Carry]:
        """The branch's input, and what write needs to know."""
        return stream, (stream,)

    def write(
        self, branch: Float[Tensor, "b n d"], carry: Carry, mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b *s n d"]:
        """The stream with the branch's output joined to it."""
        raise NotImplementedError
