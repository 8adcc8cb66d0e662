"""DoLa: contrast the last layer with an early one of the same model.

https://arxiv.org/abs/2309.03883. Of some layers, the one whose next-token distribution is farthest
from the last one's says what the model knew before it knew better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.nn.attention.scores import softclamp

RELATIVE_TOP = 0.1


def against_exits(
    final: Float[Tensor, "r v"], exits: Sequence[Float[Tensor, "r v"]]
) -> Float[Tensor, "r v"]:
    """log p_last - log p_early where p_last >= 0.1 * max p_last, -inf elsewhere; for each row,
    early is the exit with the largest Jensen-Shannon divergence from the last layer."""
    last = final.log_softmax(-1)
    early = torch.stack([logits.log_softmax(-1) for logits in exits])
    middle = (last.exp() + early.exp()) / 2
    divergence = _entropy(middle) - (_entropy(last.exp()) + _entropy(early.exp())) / 2
    farthest = early[divergence.argmax(0), torch.arange(len(last), device=last.device)]
    implausible = last < last.amax(-1, keepdim=True) + math.log(RELATIVE_TOP)
    return (last - farthest).masked_fill(implausible | final.isneginf(), -math.inf)


def exit_layers(dola: Literal["low", "high"] | tuple[int, ...], model: Any) -> tuple[int, ...]:
    """The layers to leave after, counted from 1: every second of the lower or of the upper half,
    or those that were named.

    Raises:
        ConfigError: layers that the model has not, or a model that has none to leave early.
    """
    if model.config.loop is not None:
        raise ConfigError("dola: the model runs its layers several times; leave dola out")
    depth = model.layers.num_blocks
    if depth < 2:
        raise ConfigError(f"dola: a model of {depth} layer has none before the last; leave it out")
    if dola == "low":
        return tuple(range(2, depth // 2, 2)) or (1,)
    if dola == "high":
        return tuple(range(max(1, depth // 2), depth, 2))
    wrong = [n for n in dola if not 1 <= n < depth]
    if wrong:
        raise ConfigError(
            f"dola: got layer {wrong[0]}; give layers before the last, 1 to {depth - 1}"
        )
    return tuple(sorted(set(dola)))


def exit_logits(model: Any, hidden: Float[Tensor, "r d"]) -> Float[Tensor, "r v"]:
    """What the model would say if the stack ended with these outputs of a block."""
    layers = model.layers
    if layers.config.softclamp is not None:
        hidden = softclamp(hidden, layers.config.softclamp)
    if layers.final_norm is not None:
        hidden = layers.final_norm(hidden)
    return cast(Tensor, model.to_logits(hidden)).float()


def _entropy(p: Float[Tensor, "*r v"]) -> Float[Tensor, "*r"]:
    return torch.special.entr(p).sum(-1)
