"""Contrastive decoding: what the expert knows and the amateur does not.

https://arxiv.org/abs/2210.15097, https://arxiv.org/abs/2309.09117. All models read the same tokens
in lockstep, each with its own keys and values. With several amateurs, what is left of the contrast
with one is the expert of the next.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.decode.params import ContrastiveParams


def contrast(
    expert: Float[Tensor, "*r v"], amateur: Float[Tensor, "*r v"], params: ContrastiveParams
) -> Float[Tensor, "*r v"]:
    """(1 + beta) * expert - beta * amateur, where the expert finds a token plausible:
    p >= alpha * max p; -inf elsewhere. ``amateur`` comes at its own temperature: ``tempered``.

    Sampling and greedy give logits: adding a constant to a row changes nothing there. Beam search
    adds up scores of different rows, so it gives log-probabilities of both; the score stays what
    the papers sum, not normalised again after the mask.
    """
    scores = expert * (1 + params.beta) - amateur * params.beta
    floor = math.log(params.alpha) if params.alpha > 0 else -math.inf
    best = expert.amax(dim=-1, keepdim=True)
    return scores.masked_fill((expert < best + floor) | expert.isneginf(), -math.inf)


def tempered(amateur: Float[Tensor, "*r v"], params: ContrastiveParams) -> Float[Tensor, "*r v"]:
    """The amateur's logits at its own temperature."""
    return amateur.float() / params.temperature


def check_amateur(expert_tokens: int, amateur_tokens: int, *, name: str) -> None:
    """Refuse an amateur that does not speak the expert's vocabulary."""
    if expert_tokens != amateur_tokens:
        raise ConfigError(
            f"{name}: its vocabulary has {amateur_tokens} tokens, the expert's {expert_tokens}; "
            "an amateur must be trained with the same tokenizer"
        )
