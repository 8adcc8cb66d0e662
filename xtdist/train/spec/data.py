"""What a run reads."""

from __future__ import annotations

from xtdist.config import PositiveInt, configclass
from xtdist.data.config import DataConfig


@configclass
class RunDataConfig(DataConfig):
    """Which data, and the length of the sequences it is cut into."""

    seq_len: PositiveInt = 512
