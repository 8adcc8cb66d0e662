"""What happens beside the steps of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from xtdist.train.meters import Phase

if TYPE_CHECKING:
    from xtdist.train.run import Run
    from xtdist.train.step import StepResult


class Callback:
    """Called at the same moments on all ranks, in the same order, so its methods may be collective.
    A decision from what one rank alone knows is all-reduced first. Their time is counted as
    ``phase``."""

    phase: ClassVar[Phase] = "other"

    def started(self, run: Run) -> None:
        """Before the first step, with what was restored."""

    def stepped(self, run: Run, result: StepResult) -> None:
        """After an optimizer step; ``run.position`` counts it."""

    def finished(self, run: Run) -> None:
        """After the last step, or the one at which the run was asked to stop."""

    def close(self) -> None:
        """Always, also after an error; the other ranks may be gone, so nothing collective."""
