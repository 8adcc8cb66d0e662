"""The forward passes of masked prediction: of the network, conditioned on itself, and of a critic.

Shapes: b rows, n positions, m of the flattened (b n) positions, d channels, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xtdist.model import TransformerWrapper
from xtdist.model.outputs import ModelOutput
from xtdist.nn.aux import AuxLoss
from xtdist.nn.linear import Linear
from xtdist.objective.base import LossOutput, Objective, Prepared, with_aux
from xtdist.objective.self_conditioning import SelfConditioning

ALSO_OF_CRITICS = ("documents", "pos", "seq_start_pos")
"""Inputs that say what the tokens are, whichever network reads them."""
OF_CROSS_ATTENTION = ("context", "context_mask", "context_pos")


class Losses(NamedTuple):
    """What training minimizes, and its parts; those that were not asked for are None."""

    loss: Tensor
    generator_loss: Tensor | None
    critic_loss: Tensor | None


@dataclass(frozen=True, kw_only=True)
class MaskedTokens(Prepared):
    """A batch with its masks and what else is drawn for it. conditioned: rows that see the
    network's first prediction. critic_…: for drawing what the critic judges."""

    conditioned: Bool[Tensor, " b"] | None = None
    critic_keys: Int[Tensor, "b 2"] | None = None
    critic_temperature: Float[Tensor, " b"] | None = None


def given_with(prepared: Prepared, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """``inputs`` of a network and those of the batch."""
    given = {**inputs, "mask": prepared.mask}
    own = {"documents": prepared.documents, "pos": prepared.positions}
    return given | {name: value for name, value in own.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Sums of losses (nats) over a batch of ``weight``; None: not computed."""

    weight: Float[Tensor, ""]
    generator: Float[Tensor, ""] | None = None
    critic: Float[Tensor, ""] | None = None
    critic_weight: float = 1.0
    aux: tuple[AuxLoss, ...] = ()

    def output(self) -> LossOutput:
        """All together; where there is a critic, each part is a metric."""
        if self.critic is None:
            assert self.generator is not None
            return with_aux(self.generator, self.weight, self.aux)
        if self.generator is None:
            return with_aux(self.critic, self.weight, self.aux)
        total = self.generator + self.critic * self.critic_weight
        out = with_aux(total, self.weight, self.aux)
        out.metrics["generator_loss"] = self.generator.detach()
        out.metrics["critic_loss"] = self.critic.detach()
        return out

    def means(self) -> Losses:
        """As x-transformers returns them."""
        parts = [
            None if part is None else LossOutput(part, self.weight).mean
            for part in (self.generator, self.critic)
        ]
        return Losses(self.output().mean, *parts)


class MaskedPasses(Objective):
    """The passes, of modules that ``NonAutoregressiveWrapper`` has built. It is what
    ``xtdist.decode`` calls a Denoiser."""

    mask_id: int
    self_conditioning: SelfConditioning | None
    token_critic: TransformerWrapper | None
    critic_head: Linear | None

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return self.net.num_tokens

    @property
    def max_seq_len(self) -> int:
        """The longest sequence."""
        return self.net.max_seq_len

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def has_critic(self) -> bool:
        """Whether there is something that judges tokens."""
        return self.token_critic is not None or self.critic_head is not None

    @property
    def own_modules(self) -> list[nn.Module]:
        """Those with parameters beside the network's."""
        parts = (self.self_conditioning, self.token_critic, self.critic_head)
        return [part for part in parts if part is not None]

    def denoise(
        self,
        ids: Int[Tensor, "b n"],
        *,
        rows: Int[Tensor, " m"],
        mask: Bool[Tensor, "b n"] | None = None,
        previous: Float[Tensor, "b n d"] | None = None,
        **inputs: Any,
    ) -> tuple[Float[Tensor, "m v"], Float[Tensor, "b n d"] | None]:
        """Logits at ``rows`` of the flattened (b n) positions, and the hidden states that the next
        step is given as ``previous`` (None: the network does not condition on itself)."""
        out = self._run(ids, {**inputs, "mask": mask}, previous=previous)
        hidden = out.hidden[:, -ids.shape[1] :]
        logits: Tensor = self.net.to_logits(rearrange(hidden, "b n d -> (b n) d")[rows])
        return logits, None if self.self_conditioning is None else hidden

    def criticise(
        self, ids: Int[Tensor, "b n"], *, mask: Bool[Tensor, "b n"] | None = None, **inputs: Any
    ) -> Float[Tensor, "b n"] | None:
        """Logits that a token is wrong; None without a critic."""
        if not self.has_critic:
            return None
        return self._judged(ids, {**inputs, "mask": mask}, only_head=False)[0]

    def _encoded(self, prepared: MaskedTokens, inputs: Mapping[str, Any]) -> ModelOutput:
        """The network's pass over masked tokens. Where it conditions on itself, its first pass
        always runs, and each row then sees it or does not: all ranks do the same."""
        given = given_with(prepared, inputs)
        if prepared.conditioned is None:
            return self._run(prepared.inputs, given)
        with torch.no_grad():
            first = self._run(prepared.inputs, given)
        previous = first.hidden[:, -prepared.inputs.shape[1] :]
        return self._run(prepared.inputs, given, previous=previous, known=prepared.conditioned)

    def _run(
        self,
        ids: Int[Tensor, "b n"],
        given: Mapping[str, Any],
        *,
        previous: Float[Tensor, "b n d"] | None = None,
        known: Bool[Tensor, " b"] | None = None,
    ) -> ModelOutput:
        if self.self_conditioning is None or previous is None:
            return self.net.run(ids, **given)
        added = self.self_conditioning(previous, known)
        others = given.get("sum_embeds")
        return self.net.run(
            ids, **{**given, "sum_embeds": added if others is None else added + others}
        )

    def _judged(
        self, ids: Int[Tensor, "b n"], given: Mapping[str, Any], *, only_head: bool
    ) -> tuple[Float[Tensor, "b n"], tuple[AuxLoss, ...]]:
        """The critic's logits that a token is wrong, and its auxiliary losses. ``only_head``: where
        the critic is a part of the network, nothing else of it is trained."""
        n = ids.shape[1]
        critic = self.token_critic
        if critic is not None:
            names: tuple[str, ...] = ("mask", *ALSO_OF_CRITICS)
            if critic.config.cross_attention is not None:
                names += OF_CROSS_ATTENTION
            out = critic.run(ids, **{name: given[name] for name in names if name in given})
            logits = critic.to_logits(out.hidden[:, -n:])
            squeezed = logits if logits.ndim == 2 else rearrange(logits, "b n 1 -> b n")
            return squeezed, out.aux
        assert self.critic_head is not None
        with torch.no_grad() if only_head else nullcontext():
            out = self.net.run(ids, **given)
        logits = self.critic_head(out.hidden[:, -n:])
        return rearrange(logits, "b n 1 -> b n"), () if only_head else out.aux
