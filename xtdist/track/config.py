"""Where metrics go besides ``<run folder>/metrics.jsonl``, which is always written."""

from __future__ import annotations

from urllib.parse import urlsplit

from xtdist.config import ConfigError, configclass


@configclass
class TrackConfig:
    """MLflow tracking.

    ``uri``: null for ``<run folder>/mlflow.db``; ``sqlite:////absolute/file.db`` for a file that
    runs on this host share; ``http(s)://host:port`` for a server (needed on more than one host).
    A server's user and password come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    ``mlflow: false`` leaves MLflow out.
    """

    mlflow: bool = True
    uri: str | None = None
    experiment: str = "xtdist"

    def __post_init__(self) -> None:
        if not self.experiment.strip():
            raise ConfigError("track.experiment: got an empty name; give one, as in 'xtdist'")
        if self.uri is None:
            return
        url = urlsplit(self.uri)
        if url.password or url.username:
            raise ConfigError(
                "track.uri: holds a user or password, which would be written into logs; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        server = url.scheme in ("http", "https") and bool(url.netloc)
        file = self.uri.startswith("sqlite:///") and len(self.uri) > len("sqlite:///")
        if not server and not file:
            raise ConfigError(
                f"track.uri: got {self.uri!r}; give http://host:port, https://host or "
                "sqlite:////absolute/file.db, or null for a file in the run folder"
            )
