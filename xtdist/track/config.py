"""Where metrics go besides ``<run folder>/metrics.jsonl``, which is always written."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from xtdist.config import ConfigError, NonNegativeFloat, NonNegativeInt, PositiveFloat, configclass


@configclass
class StragglerConfig:
    """When a rank is called slow: every ``every`` steps (0 = never) the ranks compare what their
    own work took; one line names a rank that took more than ``ratio`` times the others' median for
    ``windows`` comparisons in a row."""

    every: NonNegativeInt = 50
    ratio: PositiveFloat = 1.5
    windows: Annotated[int, Field(gt=0, le=2**20)] = 3

    def __post_init__(self) -> None:
        if self.ratio <= 1:
            raise ConfigError(
                f"ratio: got {self.ratio}; a rank as fast as the others has 1: give more, 1.5 "
                "for example"
            )


@configclass
class TrackConfig:
    """MLflow tracking.

    ``uri``: null for ``<run folder>/mlflow.db``; ``sqlite:////absolute/file.db`` for a file that
    runs on this host share; ``http(s)://host:port`` for a server (needed on more than one host).
    A server's user and password come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    ``mlflow: false`` leaves MLflow out.

    ``parent_run``: the id of an MLflow run in the same store; a run that begins is its child.

    ``upload_weights_mb``: kept checkpoints are MLflow's models; weights up to this size (10^6
    bytes) are uploaded with them. 0: none, the models refer to the run's storage. That is the
    default because the weights are there already, and because retention deletes them there only.

    ``system_every_s``: how often each node's CPU, memory, disk, network and GPUs are measured
    (``system/<node>/…``); 0 = never.

    ``peak_tflops``: what one device can do, in 10¹² operations a second, for the share of it that
    training uses (perf/mfu); null = from a table of GPUs, for 16-bit precision. A CPU, or fp32, has
    no such share unless it is given.
    """

    mlflow: bool = True
    uri: str | None = None
    experiment: str = "xtdist"
    parent_run: str | None = None
    upload_weights_mb: NonNegativeFloat = 0
    system_every_s: NonNegativeFloat = 10
    peak_tflops: PositiveFloat | None = None
    stragglers: StragglerConfig = StragglerConfig()

    def __post_init__(self) -> None:
        if not self.experiment.strip():
            raise ConfigError("track.experiment: got an empty name; give one, as in 'xtdist'")
        if self.uri is None:
            return
        try:
            url = urlsplit(self.uri)
            server = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
            server = server and not re.search(r"\s", self.uri)
        except ValueError as e:
            raise ConfigError(f"track.uri: got no address ({e})") from None
        if url.password or url.username or url.query:
            raise ConfigError(
                "track.uri: holds a user, password or query, which would be written into logs; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        file = self.uri.startswith("sqlite:///") and len(self.uri) > len("sqlite:///")
        if not server and not file:
            raise ConfigError(
                f"track.uri: got {self.uri!r}; give http://host:port, https://host or "
                "sqlite:////absolute/file.db, or null for a file in the run folder"
            )
