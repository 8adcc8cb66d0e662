"""What goes into a model beside the tokens, and what comes out beside the logits."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from xtdist.model.inputs import StackKeywords


class ModelInputs(StackKeywords, total=False):
    """Optional inputs of a model's forward pass: those of its stack, and of its embedding.

    sum_embeds: (b, n, d), added to the token embedding.
    """

    sum_embeds: Float[Tensor, "b n d"] | None


class LogitsAndEmbeddings(NamedTuple):
    """Logits and the normalized hidden states that they were computed from."""

    logits: Float[Tensor, "b n v"]
    embeddings: Float[Tensor, "b n d"]
