"""RunSpec: everything that a training run is, in typed parts of a file each."""

from xtdist.train.spec.batch import BatchSpec, Split
from xtdist.train.spec.checkpoint import CheckpointSpec
from xtdist.train.spec.data import RunDataConfig
from xtdist.train.spec.engine import EngineSpec, Precision
from xtdist.train.spec.loop import LoopSpec
from xtdist.train.spec.run import RunSpec, fit_to_data
from xtdist.train.spec.stability import StabilitySpec
from xtdist.train.spec.workers import WorkersSpec

__all__ = [
    "BatchSpec",
    "CheckpointSpec",
    "EngineSpec",
    "LoopSpec",
    "Precision",
    "RunDataConfig",
    "RunSpec",
    "Split",
    "StabilitySpec",
    "WorkersSpec",
    "fit_to_data",
]
