"""Filling masks: all positions are predicted at once, and the surest are kept (Mask-Predict,
https://arxiv.org/abs/1904.09324; MaskGIT, https://arxiv.org/abs/2202.04200; with random order and
constant temperature 1 the sampler of masked diffusion, https://arxiv.org/abs/2406.07524).

Any positions may be given: a prompt, a suffix, or both (infilling). This file is the rule for one
sequence; ``denoising.py`` runs many of them through a model. Shapes: n positions, k positions that
a step predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from xtdist.config import ConfigError, NonNegativeInt, PositiveInt, configclass
from xtdist.decode.fields import wanted
from xtdist.decode.noise import gumbel, mix, noise_key
from xtdist.decode.params import Seed, Temperature, TopCount

Schedule = Annotated[
    Literal["linear", "cosine"] | Callable[[float], float],
    wanted("'linear', 'cosine' or a function of the time in [0, 1]", whole=True),
]
NoiseScale = Annotated[float, Field(ge=0, le=1e4, allow_inf_nan=False)]


@configclass
class MaskPredictParams:
    """How to fill the masks of one sequence.

    There are at most ``steps`` steps, and never more than masks. After step s, ``schedule``(s /
    steps) of the masks are left: 1 - t, cos(t * pi / 2), which starts slower, or a function of
    yours from t in [0, 1] to [0, 1]. Tokens are drawn with ``temperature``, which falls linearly
    towards 0 if ``anneal`` (0 takes the best token), from the ``top_k`` best (0: from all).

    ``order`` decides which of them stay: those that the model is surest of, those that its critic
    finds right, or random ones. Sureness (a log-probability) and the critic's logit get Gumbel
    noise times ``noise``, which falls to 0. With ``remask``, tokens of earlier steps may be masked
    again; they are judged by their own probability, in the light of the tokens around them.

    ``mask_id`` marks the positions to fill (None: the model says it). ``seed`` None: the engine's.
    """

    steps: PositiveInt = 18
    temperature: Temperature = 1.0
    anneal: bool = True
    top_k: TopCount = 0
    schedule: Schedule = "cosine"
    order: Literal["confidence", "critic", "random"] = "confidence"
    noise: NoiseScale = 1.0
    remask: bool = False
    mask_id: NonNegativeInt | None = None
    seed: Seed | None = None

    def masked_fraction(self, t: float) -> float:
        """Share of the masks that is left at time ``t`` in [0, 1].

        Raises:
            ConfigError: a function as schedule that leaves [0, 1].
        """
        if self.schedule == "linear":
            return 1.0 - t
        if self.schedule == "cosine":
            return math.cos(t * math.pi / 2)
        found = self.schedule(t)
        try:
            fraction = float(found)
        except (TypeError, ValueError, RuntimeError):  # no number, or a tensor of several
            fraction = math.nan
        if not 0 <= fraction <= 1:  # nan is not, either
            raise ConfigError(
                f"schedule: at t={t:.3g} it gives {found!r:.80}; give the share of the masks "
                "that is left, from 0 to 1"
            )
        return fraction


@dataclass(eq=False)
class Filling:
    """A sequence whose masks are being filled; ``masked`` are those that are left.

    ``previous``: what the model is given of its last prediction, if it conditions on itself.
    """

    params: MaskPredictParams
    seed: int
    mask_id: int
    ids: Int[Tensor, " n"]
    to_fill: Bool[Tensor, " n"]
    masked: Bool[Tensor, " n"]
    left_after: tuple[int, ...]
    taken: int = 0
    previous: Float[Tensor, "n d"] | None = None

    @classmethod
    def of(
        cls, tokens: Sequence[int], params: MaskPredictParams, *, mask_id: int, seed: int
    ) -> Filling:
        """``tokens`` hold ``mask_id`` where something is to be filled in.

        Raises:
            ConfigError: a schedule that leaves [0, 1].
        """
        ids = torch.tensor(tokens, dtype=torch.long)
        masked = ids == mask_id
        left = schedule_of(int(masked.sum()), params)
        return cls(params, seed, mask_id, ids, masked.clone(), masked, left)

    @property
    def steps(self) -> int:
        return len(self.left_after)

    @property
    def done(self) -> bool:
        return self.taken == self.steps

    @property
    def last_step(self) -> bool:
        """Whether the next step keeps everything."""
        return self.taken + 1 == self.steps

    @property
    def remaining(self) -> float:
        """Share of the steps that is left: what temperature and noise fall with."""
        return 1.0 - self.taken / self.steps

    @property
    def temperature(self) -> float:
        return self.params.temperature * (self.remaining if self.params.anneal else 1.0)

    @property
    def candidates(self) -> Bool[Tensor, " n"]:
        """Positions that are masked after this step or hold a token, as their rank says."""
        return self.to_fill if self.params.remask else self.masked

    @property
    def predicted(self) -> Bool[Tensor, " n"]:
        """Positions whose logits this step reads."""
        return self.candidates if self.params.order == "confidence" else self.masked

    def keys(self, purpose: str, positions: Int[Tensor, " k"]) -> Int[Tensor, "k 2"]:
        """A noise key per position, from (seed, purpose, step, position)."""
        key = noise_key(self.seed, purpose, self.taken)
        keys = torch.tensor([key], dtype=torch.int32).repeat(len(positions), 1)
        keys[:, 0] = mix(keys[:, 0] ^ positions.to(torch.int32))
        return keys

    def accept(
        self, drawn: Int[Tensor, " n"], sureness: Float[Tensor, " n"] | None
    ) -> tuple[tuple[int, int], ...]:
        """Keep the best tokens of ``drawn``, which holds a token everywhere, and mask the others.

        sureness: higher is better; read at ``candidates``; None: their order is random.
        Returns what has changed as (position, token), the mask included.
        """
        before = self.ids
        places = self.candidates.nonzero()[:, 0]
        keep = places[self._ranked(sureness, places)[: len(places) - self.left_after[self.taken]]]
        self.masked = self.masked & False
        self.masked[places] = True
        self.masked[keep] = False
        self.ids = torch.where(self.masked, self.mask_id, drawn)
        self.taken += 1
        changed = (self.ids != before).nonzero()[:, 0]
        return tuple(zip(changed.tolist(), self.ids[changed].tolist(), strict=True))

    def _ranked(
        self, sureness: Float[Tensor, " n"] | None, places: Int[Tensor, " k"]
    ) -> Int[Tensor, " k"]:
        """Indices into ``places``, best first."""
        scale = 1.0 if sureness is None else self.params.noise * self.remaining
        score = torch.zeros(len(places)) if sureness is None else sureness[places]
        if scale:
            zero = torch.zeros(1, 1, dtype=torch.long)
            score = score + scale * gumbel(self.keys("order", places), zero)[:, 0]
        return score.argsort(descending=True, stable=True)


def schedule_of(masks: int, params: MaskPredictParams) -> tuple[int, ...]:
    """How many of ``masks`` are left after each step: every step fills one at least."""
    steps, left = min(params.steps, masks), [masks]
    for step in range(1, steps + 1):
        wanted = math.floor(masks * params.masked_fraction(step / steps) + 1e-6)
        left.append(0 if step == steps else min(wanted, left[-1] - 1))
        if not left[-1]:
            break
    return tuple(left[1:])
