"""What every objective offers to a training step."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.model import ModelConfig, TransformerWrapper
from xtdist.model.around import within_documents
from xtdist.model.tensors import check_ids
from xtdist.model.tokens import BESIDE, check_predicts_tokens
from xtdist.nn.aux import AuxLoss
from xtdist.objective.loss import cross_entropy_of

PER_TOKEN = ("inputs", "targets", "weights", "mask", "keys", "documents", "positions")
"""What of a prepared batch has one value for each token."""


@dataclass(frozen=True)
class LossOutput:
    """A loss as (sum, weight), so that parts of any size add up: mean = Σ sum / Σ weight.

    ``sum`` (nats) and ``weight`` (tokens) are fp32 scalars; ``metrics`` are sums to be divided by
    the same weight.
    """

    sum: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    metrics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> Float[Tensor, ""]:
        """sum / weight; 0 where nothing counts."""
        return self.sum / torch.where(self.weight > 0, self.weight, 1.0)


def with_aux(
    total: Float[Tensor, ""], weight: Float[Tensor, ""], aux: Sequence[AuxLoss]
) -> LossOutput:
    """``total`` with the auxiliary losses of the network's layers added.

    Each counts with the batch's weight, so that over any number of parts and ranks their mean,
    weighted like the loss, is what is trained. Each is also a metric.
    """
    metrics: dict[str, Tensor] = {}
    for part in aux:
        value = part.sum / torch.where(part.weight > 0, part.weight, 1.0) * weight
        total = total + part.scale * value
        name = f"aux/{part.name}"
        metrics[name] = metrics.get(name, torch.zeros_like(value)) + value.detach()
    return LossOutput(total, weight, metrics)


def check_trainable(config: ModelConfig, *, causal: bool, name: str, alone: bool = False) -> None:
    """Refuse a network that can't be trained to predict tokens.

    causal: what the objective needs. alone: it is built from its config and given nothing but
        tokens, all of which may be targets, as a training run does; without it, a caller may give a
        context, a condition and so on, and choose the targets.

    Raises:
        ConfigError: the wrong direction, no distribution for each token, or an input that is not
            there.
    """
    if not hasattr(config, "head"):
        raise ConfigError(
            f"{name}: got something without embedding and head; give TransformerWrapper("
            "num_tokens=…, max_seq_len=…, attn_layers=…), which of a training wrapper is its `.net`"
        )
    if config.causal != causal:
        why = "sees the tokens" if causal else "does not see what stands after the tokens"
        raise ConfigError(
            f"{name}: this objective needs model.causal: {str(causal).lower()}, a "
            f"{'causal network (Decoder)' if causal else 'bidirectional network (Encoder)'}; the "
            f"one it got {why} that it should predict"
        )
    check_predicts_tokens(config, name=name, given=() if alone else BESIDE)
    if not alone:
        return
    count = config.head.dim
    if count is not None and count < config.num_tokens:
        raise ConfigError(
            f"{name}.head.dim: got {count}, but all {config.num_tokens} tokens of the dataset are "
            "targets: leave it out"
        )
    for place in ("embedding", "head"):
        if getattr(config, place).given:
            raise ConfigError(
                f"{name}.{place}.given: a run builds the network from its config, and a module "
                "that is given stands in none: leave it out"
            )


def check_targets(net: TransformerWrapper, targets: Int[Tensor, "..."]) -> None:
    """Refuse targets that a network can't predict.

    Raises:
        ConfigError: one that has no logit because there are fewer than tokens (``logits_dim``).
        ValueError: no token ids, or one that is in no vocabulary.
    """
    count = net.config.head.dim or net.num_tokens
    if count >= net.num_tokens or not targets.numel():
        check_ids(targets, count, name="targets", what="token ids")
        return
    highest = int(targets.max())
    if highest >= count:
        raise ConfigError(
            f"targets: got id {highest}, but the network predicts ids 0 to {count - 1} "
            f"(logits_dim, head.dim={count}); let ids from there on be inputs only (ignore_index "
            "where they would be targets), or leave logits_dim out"
        )


def cross_entropies(
    net: TransformerWrapper,
    hidden: Float[Tensor, "m d"],
    targets: Int[Tensor, " m"],
    weights: Float[Tensor, " m"],
    *,
    smoothing: float = 0.0,
    each: Float[Tensor, " m"] | None = None,
) -> Float[Tensor, ""]:
    """Σᵢ weightsᵢ · CE(logits of hiddenᵢ, targetsᵢ), fp32; without all logits at once where the
    head is one matrix. ``smoothing``, ``each``: as for ``cross_entropy_of``."""
    if net.config.head.is_linear:
        function = cross_entropy_of(targets, weights, smoothing=smoothing, each=each)
        return net.apply_head(hidden, function)
    logits = net.to_logits(hidden).float()
    # A mixture of softmaxes gives log-probabilities already.
    logp = logits if net.config.head.mixture else logits.log_softmax(dim=-1)
    losses = F.nll_loss(logp, targets, reduction="none")
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * logp.mean(dim=-1)
    if each is not None:
        each.copy_(losses.detach())
    return (losses * weights).sum()


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A batch with all its noise drawn: what the network sees and what is asked of it.

    ``weights``: how much each position's cross-entropy counts in the sum; ``counts``: what each row
    adds to the divisor (tokens). ``mask``: True = real token; None = all are. ``keys``: False = no
    token may read it; None = all may be read. ``documents``: numbers, tokens read only tokens of
    their own; None = each row is one document. Padding among them has a negative number for each
    token. ``positions``: of a slice of the rows, where the tokens stand in the whole ones.
    """

    inputs: Int[Tensor, "b n"]
    targets: Int[Tensor, "b n"]
    weights: Float[Tensor, "b n"]
    counts: Float[Tensor, " b"]
    sample_ids: Int[Tensor, " b"]
    mask: Bool[Tensor, "b n"] | None = None
    keys: Bool[Tensor, "b n"] | None = None
    documents: Int[Tensor, "b n"] | None = None
    positions: Int[Tensor, "b n"] | None = None

    @property
    def weight(self) -> Float[Tensor, ""]:
        """The batch's share of the divisor, known before the forward pass."""
        return self.counts.sum()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> Self:
        return self._map(lambda t: t[rows])

    def to(self, device: torch.device | str) -> Self:
        """The batch on ``device``."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def slice_of(self, number: int, count: int) -> Self:
        """Slice ``number`` of ``count`` equal ones of all rows. The first has the whole counts, so
        that losses and weights of all slices add up to those of the rows."""
        if self.documents is None:
            positions = torch.arange(self.inputs.shape[1]).expand(self.inputs.shape)
        else:
            positions = within_documents(self.documents, None)
        whole = dataclasses.replace(self, positions=positions.to(self.inputs.device))
        tokens = {n: t for n in PER_TOKEN if (t := getattr(whole, n)) is not None}
        parts = {name: t.chunk(count, dim=1)[number] for name, t in tokens.items()}
        counts = self.counts if number == 0 else torch.zeros_like(self.counts)
        return dataclasses.replace(whole, counts=counts, **parts)

    def only(self, counted: Bool[Tensor, "#b n"]) -> Self:
        """The same with the ``counted`` targets only."""
        weights = self.weights * counted
        return dataclasses.replace(self, weights=weights, counts=weights.sum(dim=1))

    def muted(self) -> Self:
        """The same batch weighing nothing: for a rank without rows that must still take part."""
        return dataclasses.replace(
            self, weights=torch.zeros_like(self.weights), counts=torch.zeros_like(self.counts)
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        mapped: dict[str, Any] = {k: None if t is None else function(t) for k, t in parts.items()}
        return dataclasses.replace(self, **mapped)


class Objective(nn.Module, ABC):
    """A network and what it is trained for. Subclasses also have a ``forward`` that returns the
    mean loss of raw token ids, for use without this library's training loop."""

    net: TransformerWrapper

    def __init__(self, net: TransformerWrapper) -> None:
        super().__init__()
        self.net = net

    @abstractmethod
    def prepare(
        self,
        tokens: Int[Tensor, "b n+1"],
        *,
        seed: int,
        sample_ids: Int[Tensor, " b"],
        documents: Int[Tensor, "b n+1"] | None = None,
    ) -> Prepared:
        """Inputs, targets and weights of ``tokens``. All noise is drawn here, each row's from
        (``seed``, its sample id) alone: the same on any number of workers.

        documents: numbers; tokens of different ones have nothing to do with each other. Negative
            ones, different for each token, are padding. None: each row is one document.
        """

    @abstractmethod
    def losses(self, prepared: Prepared) -> LossOutput:
        """The loss of a prepared batch (differentiable)."""
