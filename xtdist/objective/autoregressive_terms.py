"""The terms of the next-token loss beside cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from xtdist.model import TransformerWrapper
from xtdist.nn.aux import AuxLoss
from xtdist.objective.base import Prepared, cross_entropies
from xtdist.objective.config import AutoregressiveConfig


def next_embedding_loss(
    net: TransformerWrapper,
    hidden: Float[Tensor, "b n d"],
    initial: Float[Tensor, "b n e"],
    prepared: Prepared,
    *,
    scale: float,
) -> AuxLoss:
    """The mean absolute error of predicted next embeddings, over the targets whose own embedding
    the network has seen: not the last one, and none that was replaced."""
    assert net.next_embedding is not None
    error = net.next_embedding(hidden[:, :-1]).float() - initial[:, 1:].detach().float()
    own = prepared.inputs[:, 1:] == prepared.targets[:, :-1]
    counted = (own & (prepared.weights[:, :-1] > 0)).float()
    loss = (error.abs().mean(dim=-1) * counted).sum()
    return AuxLoss("next_embedding", loss, counted.sum(), scale)


def looped_loss(
    net: TransformerWrapper,
    hiddens: Sequence[Float[Tensor, "b n d"]],
    exit_logits: Sequence[Float[Tensor, "b n 1"]],
    prepared: Prepared,
    config: AutoregressiveConfig,
) -> tuple[Float[Tensor, ""], AuxLoss]:
    """For a stack that ran several times (2510.25741): the cross-entropy after each pass, weighted
    by the probability that the token leaves there, and the loss of the gate. The gate should close
    (stay) where the next pass lowers the cross-entropy by more than the threshold."""
    passes = len(hiddens)
    gate = rearrange(torch.stack(list(exit_logits)), "l b n 1 -> l b n").float()
    hidden = rearrange(torch.stack(list(hiddens)), "l b n d -> (l b n) d")
    weights = exit_probabilities(gate.detach()) * prepared.weights
    losses = torch.empty(weights.numel(), device=hidden.device)
    total = cross_entropies(
        net,
        hidden,
        repeat(prepared.targets, "b n -> (l b n)", l=passes),
        weights.flatten(),
        smoothing=config.label_smoothing,
        each=losses,
    )
    loss = losses.view_as(weights)
    gain = loss[:-1] - loss[1:]
    leaves = (config.looped_loss_slope * (config.looped_loss_threshold_exit - gain)).sigmoid()
    counted = (prepared.weights > 0).float()
    of_gate = F.binary_cross_entropy_with_logits(gate[:-1], leaves, reduction="none")
    return total, AuxLoss(
        "exit_gate",
        (of_gate * counted).sum(),
        counted.sum() * (passes - 1),
        config.looped_exit_loss_weight,
    )


def exit_probabilities(gate: Float[Tensor, "l b n"]) -> Float[Tensor, "l b n"]:
    """For each pass the probability that a token leaves there and not before; the last takes the
    rest."""
    stays = F.logsigmoid(-gate[:-1]).cumsum(dim=0)
    before = F.pad(stays, (0, 0, 0, 0, 1, 0))
    leaves = F.pad(F.logsigmoid(gate[:-1]), (0, 0, 0, 0, 0, 1))
    return (before + leaves).exp()
