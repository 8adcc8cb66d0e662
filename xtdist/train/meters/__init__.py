"""Where a run's time goes, and how near to its devices' limits it is."""

from xtdist.train.meters.phases import PHASES, Lap, Now, Phase, Phases

__all__ = ["PHASES", "Lap", "Now", "Phase", "Phases"]
