"""What a checkpoint of a run holds: the optimizer's state as named slices of parameters, the
weights to serve, and the record of what they belong to.

No random state is saved: every draw is derived from (seed, step, sample id), and the data position
is the step, so a resumed run repeats the one that was never interrupted bit for bit.
"""

from xtdist.train.state.extras import gather, load_extra
from xtdist.train.state.find import find_commit
from xtdist.train.state.flats import Flat, flats
from xtdist.train.state.host import HostCopies
from xtdist.train.state.identity import Record, check_identity, identity
from xtdist.train.state.position import Position
from xtdist.train.state.restore import restore
from xtdist.train.state.snapshot import (
    BYTES_PER_PARAMETER,
    check_disk,
    checkpoint_bytes,
    describe,
    keep_chat_template,
    objective_state,
    snapshot,
)

__all__ = [
    "BYTES_PER_PARAMETER",
    "Flat",
    "HostCopies",
    "Position",
    "Record",
    "check_disk",
    "check_identity",
    "checkpoint_bytes",
    "describe",
    "find_commit",
    "flats",
    "gather",
    "identity",
    "keep_chat_template",
    "load_extra",
    "objective_state",
    "restore",
    "snapshot",
]
