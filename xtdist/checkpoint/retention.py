"""Which checkpoints stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xtdist.checkpoint.naming import step_of


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The newest ``keep``, the ``keep_best`` with the best metric, and every one whose step is a
    multiple of ``keep_every`` (0: none)."""

    keep: int = 3
    keep_best: int = 0
    keep_every: int = 0
    lower_is_better: bool = True

    def kept(self, names: Sequence[str], metrics: Mapping[str, float]) -> set[str]:
        """Those of ``names`` (oldest first) that stay; the newest always does. One without a
        metric is never among the best; of equal ones the newer is."""
        newest = list(names[-max(self.keep, 1) :])
        rated = [n for n in names if n in metrics]
        sign = 1.0 if self.lower_is_better else -1.0
        rated.sort(key=lambda n: (sign * metrics[n], -names.index(n)))
        every = [n for n in names if self.keep_every and step_of(n) % self.keep_every == 0]
        return {*newest, *rated[: self.keep_best], *every}
