"""An MLflow run: its address, and logging of what is not a metric.

Only :class:`mlflow.MlflowClient` is used: the fluent API keeps its run per thread and would open
one run per worker. MLflow is imported where used (it takes seconds).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xtdist.config import ConfigError
from xtdist.track.datasets import TokenData, dataset_input
from xtdist.track.records import Series

if TYPE_CHECKING:
    from mlflow import MlflowClient

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
MAX_PARAM_CHARS = 6000
# Ours unless the user set them: no telemetry, no chatter, no minutes of retries inside a call.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MlflowRun:
    """A run's address; plain data, so the driver can send it to the workers.

    Its methods log what is not a metric. None of them raises: they return whether it worked,
    and warn if not.
    """

    uri: str
    run_id: str
    run_folder: str

    def log_artifact(self, path: str | Path) -> bool:
        """Upload one small file (a plot, a config), never checkpoints."""
        return self._attempt(
            f"the artifact {path}", lambda c: c.log_artifact(self.run_id, str(path))
        )

    def log_text(self, text: str, name: str) -> bool:
        """Upload ``text`` as the artifact ``name``."""
        return self._attempt(f"the artifact {name}", lambda c: c.log_text(self.run_id, text, name))

    def log_metric(self, name: str, value: float) -> bool:
        """One number about the whole run; those of its steps come from its folder."""
        return self._attempt(
            f"the metric {name}", lambda c: c.log_metric(self.run_id, name, value, step=0)
        )

    def set_tags(self, tags: Mapping[str, str]) -> bool:
        """Set or replace tags."""

        def send(client: MlflowClient) -> None:
            for key, value in tags.items():
                client.set_tag(self.run_id, key, value)

        return self._attempt("tags", send)

    def log_inputs(self, data: Sequence[TokenData]) -> bool:
        """Link the datasets that the run reads; again is harmless."""

        def send(client: MlflowClient) -> None:
            client.log_inputs(self.run_id, datasets=[dataset_input(d) for d in data])

        return self._attempt("the datasets", send)

    def set_ended(self, status: RunStatus) -> bool:
        """Mark the run as over; :func:`xtdist.track.shipper.finish_run` also sends the rest."""
        return self._attempt("the status", lambda c: c.set_terminated(self.run_id, status=status))

    def _attempt(self, what: str, send: Callable[[MlflowClient], object]) -> bool:
        try:
            send(connect(self.uri))
        except Exception as e:  # whatever it is, tracking must not end a training run
            _log.warning("MLflow at %s did not take %s: %s", self.uri, what, brief(e))
            return False
        return True


def connect(uri: str) -> MlflowClient:
    """A client for ``uri``. Sets MLflow's environment defaults (telemetry off, short retries)."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def tracking_uri(uri: str | None, run_folder: str | Path) -> str:
    """``uri`` with the default filled in and a file's path made absolute: a worker's working
    directory is another one."""
    if uri is not None and not uri.startswith("sqlite:///"):
        return uri
    file = Path(run_folder) / "mlflow.db" if uri is None else Path(uri.removeprefix("sqlite:///"))
    path = str(file.resolve())
    if set(path) & set("%?'\"`\\"):
        raise ConfigError(
            f"MLflow's store would be {path}, whose path holds one of % ? ' \" ` \\; choose "
            "another output, or set track.uri to a server or another file"
        )
    return f"sqlite:///{path}"


def metric_history(uri: str, run_id: str, name: str) -> Series:
    """A metric as MLflow has it, with repeated steps settled as in :mod:`xtdist.track.records`."""
    points = connect(uri).get_metric_history(run_id, name)
    series = Series()
    for p in sorted(points, key=lambda p: (p.timestamp, p.step)):
        series.add(p.step, p.value, p.timestamp / 1000)
    return series


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested params as ``a.b.c`` → text, each within MLflow's length limit."""
    out: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            out[f"{prefix}{key}"] = text[:MAX_PARAM_CHARS]
    return out


def brief(error: BaseException) -> str:
    """The first line of an error, short enough for a log line."""
    if "Max retries exceeded" in str(error):  # urllib3's two lines on a refused or silent server
        return "no answer"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
