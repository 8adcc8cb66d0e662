"""What a checkpoint is: layout, commit, weights."""

from xtdist.checkpoint.layout import Manifest, read_manifest, verify
from xtdist.checkpoint.store import CheckpointStore, Commit, PendingCommit
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
    "LoadedModel",
    "Manifest",
    "PendingCommit",
    "WeightsConfig",
    "find_weights",
    "load_weights",
    "read_manifest",
    "save_weights",
    "verify",
]
