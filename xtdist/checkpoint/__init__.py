"""What a checkpoint is: layout, commit, weights."""

from xtdist.checkpoint.layout import Manifest, read_manifest, verify
from xtdist.checkpoint.lease import FencedError, Lease
from xtdist.checkpoint.retention import Retention
from xtdist.checkpoint.saver import Missed, Ranks, Saved, Saver
from xtdist.checkpoint.store import CheckpointStore, Commit
from xtdist.checkpoint.weights import (
    LoadedModel,
    WeightsConfig,
    find_weights,
    load_weights,
    save_weights,
)

__all__ = [
    "CheckpointStore",
    "Commit",
    "FencedError",
    "Lease",
    "LoadedModel",
    "Manifest",
    "Missed",
    "Ranks",
    "Retention",
    "Saved",
    "Saver",
    "WeightsConfig",
    "find_weights",
    "load_weights",
    "read_manifest",
    "save_weights",
    "verify",
]
