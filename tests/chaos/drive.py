"""The driver of a chaos run: ``xtdist train CONFIG`` with another worker."""

from __future__ import annotations

import sys
from pathlib import Path

import worker
from ray import cloudpickle

from xtdist.config import load
from xtdist.launch.trainer import run_training
from xtdist.train import RunSpec

if __name__ == "__main__":
    cloudpickle.register_pickle_by_value(worker)  # the cluster's processes can't import it
    outcome = run_training(load(RunSpec, Path(sys.argv[1])).config, worker.chaos_worker)
    sys.exit(0 if outcome.finished else 130)
