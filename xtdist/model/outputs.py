"""What goes into a model beside the tokens, and what comes out beside the logits."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

from jaxtyping import Bool, Float, Int
from torch import Tensor

from xtdist.nn.attention.cache import KVCache


class ModelInputs(TypedDict, total=False):
    """Optional inputs of a forward pass.

    mask: (b, n), True = a real token, False = padding, which nobody reads.
    pos: (b, n) or (n,) positions of the tokens; without it 0, 1, 2, ….
    cache: keys and values of earlier tokens; ``x`` then holds new tokens only and needs ``pos``.
    sum_embeds: (b, n, d), added to the token embedding.
    """

    mask: Bool[Tensor, "b n"] | None
    pos: Int[Tensor, "b n"] | Int[Tensor, " n"] | None
    cache: KVCache | None
    sum_embeds: Float[Tensor, "b n d"] | None


class LogitsAndEmbeddings(NamedTuple):
    """Logits and the normalized hidden states that they were computed from."""

    logits: Float[Tensor, "b n v"]
    embeddings: Float[Tensor, "b n d"]
