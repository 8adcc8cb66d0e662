"""Which tokens are masked, and how much each counts: the noise of masked diffusion.

Shapes: b rows, n positions, k masked tokens, t times in [0, 1).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xtdist.config import ConfigError, derive_seed
from xtdist.objective.config import NonAutoregressiveConfig

ScheduleFunction = Callable[[Float[Tensor, " t"]], Float[Tensor, " t"]]
"""Times to masked fractions."""


class Schedule(ABC):
    """The masked fraction p(t) at a time t, which is drawn uniformly from [0, 1)."""

    @abstractmethod
    def fraction(self, t: float) -> float:
        """p(t), in [0, 1]."""

    @abstractmethod
    def below(self, p: float) -> float:
        """The probability that p(t) <= ``p``."""

    def count(self, t: float, n: int) -> int:
        """How many of n tokens are masked: ⌈p(t) n⌉, at least one."""
        return min(max(math.ceil(self.fraction(t) * n), 1), n)

    def probability(self, k: int, n: int) -> float:
        """P(k): how likely ``count`` is k."""
        high = 1.0 if k == n else self.below(k / n)
        return high - (0.0 if k == 1 else self.below((k - 1) / n))

    def weight(self, k: int, n: int) -> float:
        """1 / (k P(k)), the weight of each of the k masked tokens out of n.

        Restoring tokens in random order gives −log p(x) <= Σₖ (1/k) E[Σ cross-entropy of k masked
        tokens], k = 1 … n; drawing k with probability P(k) asks for this weight. For the linear
        schedule P(k) = 1/n: MDLM's 1/p with p = k/n (2406.07524), without the variance of k
        given p.
        """
        return 1 / (k * self.probability(k, n))


class Linear(Schedule):
    """p = 1 − t."""

    def fraction(self, t: float) -> float:
        return 1 - t

    def below(self, p: float) -> float:
        return p


class Cosine(Schedule):
    """p = cos(π t / 2), mostly high (2202.04200)."""

    def fraction(self, t: float) -> float:
        return math.cos(math.pi * t / 2)

    def below(self, p: float) -> float:
        return 1 - math.acos(p) * 2 / math.pi


class Tabulated(Schedule):
    """Any function of the time, as its values at the middles of ``CELLS`` equal cells of time. What
    is drawn and how likely it is come from the same table, so weights are exact whatever the
    function is.

    Args:
        function: takes a tensor of times and gives as many fractions. It may rise, fall or jump.
        weighted: whether ``weight`` is asked for, and for up to ``longest`` tokens: then no number
            of them may be out of reach.

    Raises:
        ConfigError: other values than fractions, or numbers that are never masked.
    """

    CELLS = 2**18

    def __init__(self, function: ScheduleFunction, *, longest: int, weighted: bool) -> None:
        times = (torch.arange(self.CELLS, dtype=torch.float64) + 0.5) / self.CELLS
        found = function(times)
        if not isinstance(found, Tensor) or found.shape != times.shape:
            seen = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"schedule: for a tensor of times {tuple(times.shape)} it gives {seen}; give a "
                "function that returns the masked fraction for each of them"
            )
        values = found.detach().double().cpu()
        if not bool(((values >= -1e-6) & (values <= 1 + 1e-6)).all()):  # nan compares false
            raise ConfigError(
                f"schedule: it gives {float(values.min()):.3g} to {float(values.max()):.3g}; give "
                "masked fractions, from 0 to 1"
            )
        self.values = values.clamp(0, 1)
        self.sorted = self.values.sort().values
        if weighted:
            self._check_reach(longest)

    def fraction(self, t: float) -> float:
        return float(self.values[min(int(t * self.CELLS), self.CELLS - 1)])

    def below(self, p: float) -> float:
        return int(torch.searchsorted(self.sorted, p, right=True)) / self.CELLS

    def _check_reach(self, longest: int) -> None:
        ends = self.sorted.new_tensor([0.0, 1.0])
        whole = torch.cat((ends[:1], self.sorted, ends[1:]))
        gap, at = whole.diff().max(dim=0)
        if gap.item() > 1 / longest:
            raise ConfigError(
                f"schedule: it (almost) never gives a masked fraction between {whole[at]:.4g} and "
                f"{whole[at + 1]:.4g}, so for {longest} tokens (max_seq_len) the weighted loss is "
                "no bound; give one that reaches all from 0 to 1, or "
                "use_simple_mdlm_loss_weight=False"
            )


def schedule_of(
    given: str | ScheduleFunction, *, longest: int = 1, weighted: bool = True
) -> Schedule:
    """The schedule of that name, or that a function describes.

    Raises:
        ConfigError: something else.
    """
    named: dict[str, type[Schedule]] = {"linear": Linear, "cosine": Cosine}
    if isinstance(given, str):
        return named[given]()
    if not callable(given):
        raise ConfigError(
            f"schedule: got {given!r:.80}; give linear, cosine, or a function of times"
        )
    return Tabulated(given, longest=longest, weighted=weighted)


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Draws what the network sees of a sequence."""

    config: NonAutoregressiveConfig
    schedule: Schedule
    mask_id: int
    num_tokens: int

    def draw(
        self,
        row: Int[Tensor, " n"],
        real: Bool[Tensor, " n"],
        generator: torch.Generator,
        *,
        augment: bool,
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """The sequence with k of its real tokens masked, and each position's weight in the loss.
        ``augment``: by chance other things than masks stand there."""
        places = real.nonzero()[:, 0]
        weights = torch.zeros(len(row))
        if not len(places):
            return row, weights
        t, *_ = torch.rand(1, generator=generator).tolist()
        k = self.schedule.count(t, len(places))
        chosen = places[torch.randperm(len(places), generator=generator)[:k]]
        elbo = self.config.weight == "elbo"
        weights[chosen] = self.schedule.weight(k, len(places)) if elbo else 1.0
        row = row.clone()
        row[chosen] = self._noised(row[chosen], generator) if augment else self.mask_id
        return row, weights

    def _noised(self, ids: Int[Tensor, " k"], generator: torch.Generator) -> Int[Tensor, " k"]:
        """What stands in place of masked tokens: the mask, or by chance the token itself or any
        other but the mask; each of these only in every second sequence, by chance too."""
        keep, swap = torch.rand(2, len(ids), generator=generator)
        other = torch.randint(self.num_tokens - 1, ids.shape, generator=generator)
        other = other + (other >= self.mask_id)
        keeps, swaps = (torch.rand(2, generator=generator) < 0.5).tolist()
        config = self.config
        noised = torch.where(
            swap < (config.random_token_prob if swaps else 0.0), other, self.mask_id
        )
        return torch.where(keep < (config.no_replace_prob if keeps else 0.0), ids, noised)


def uniform(seed: int, purpose: str, ids: list[int]) -> Float[Tensor, " b"]:
    """A number in [0, 1) for each row."""
    return torch.tensor([(derive_seed(seed, purpose, i) >> 39) / 2**24 for i in ids])
