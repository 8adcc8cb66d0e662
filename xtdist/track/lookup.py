"""One MLflow run per training run: found or made by the driver, rejoined on resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtdist.config import ConfigError, ResourceError
from xtdist.files import write_atomic
from xtdist.track.config import TrackConfig
from xtdist.track.mlflow import (
    MlflowRun,
    brief,
    connect,
    flatten,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_FILE = "mlflow_run.json"
PARAMS_PER_CALL = 100
PARENT_TAG = "mlflow.parentRunId"
NAME_TAG, FOLDER_TAG = "xtdist.run", "xtdist.folder"
_log = logging.getLogger(__name__)


def open_run(
    config: TrackConfig,
    *,
    run_folder: str | Path,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
) -> MlflowRun | None:
    """The MLflow run of the training run ``name`` in ``run_folder``; None if MLflow is off.

    The same folder and name give the same run again, set back to RUNNING. ``params`` may be
    nested. MLflow's params can't change: those that differ on a resume become tags
    ``changed.<param>``. If a known run's server is away, training goes on and metrics wait in
    ``metrics.jsonl``.

    Raises:
        ConfigError: a name that MLflow can't search for.
        ResourceError: the server of a new run can't be reached.
    """
    if not config.mlflow:
        return None
    if not name or any(c in name for c in "'\"`\\"):
        raise ConfigError(f"run name: got {name!r}; give a name without quotes and backslashes")
    folder = Path(run_folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri(config.uri, folder)
    known = _read(folder, uri)
    try:
        client = connect(uri)
        experiment = _experiment(client, config.experiment, uri)
        own = {NAME_TAG: name, FOLDER_TAG: str(folder)}
        nested = {} if config.parent_run is None else {PARENT_TAG: config.parent_run}
        run_id = _find(client, known, experiment, own)
        run_id = run_id or _create(client, experiment, name, own | nested)
        run = MlflowRun(uri=uri, run_id=run_id, run_folder=str(folder))
        _write(run)
        _describe(client, run_id, flatten(params), dict(tags or {}))
    except Exception as e:
        if known is not None:
            _log.warning("MLflow at %s is away; metrics wait in the run folder: %s", uri, brief(e))
            return known
        raise ResourceError(
            f"track.uri: MLflow at {uri} can't be used ({brief(e)}); start the server, correct "
            "track.uri, or set track.mlflow=false"
        ) from None
    return run


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    """The experiment's id. Artifacts go beside a database file, or where the server says."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    artifacts = None
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///"))
        artifacts = (database.parent / f"{database.stem}_artifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except Exception:
        found = client.get_experiment_by_name(name)  # another job was faster
        if found is None:
            raise
        return str(found.experiment_id)


def _find(
    client: MlflowClient, known: MlflowRun | None, experiment: str, own: dict[str, str]
) -> str | None:
    """The run noted in the folder, else the one with our tags (its note may be lost)."""
    where = " and ".join(f"tags.`{key}` = '{value}'" for key, value in own.items())
    runs = client.search_runs([experiment], where, max_results=100)
    ids = [str(run.info.run_id) for run in runs]
    if not ids:
        return None
    run_id = known.run_id if known is not None and known.run_id in ids else ids[0]
    client.update_run(run_id, status="RUNNING")
    return run_id


def _create(client: MlflowClient, experiment: str, name: str, own: dict[str, str]) -> str:
    return str(client.create_run(experiment, run_name=name, tags=own).info.run_id)


def _describe(
    client: MlflowClient, run_id: str, params: dict[str, str], tags: dict[str, str]
) -> None:
    from mlflow.entities import Param, RunTag

    old = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in params.items() if key not in old]
    for start in range(0, len(new), PARAMS_PER_CALL):
        client.log_batch(run_id, params=new[start : start + PARAMS_PER_CALL])
    changed = {f"changed.{k}": v for k, v in params.items() if k in old and old[k] != v}
    all_tags = [RunTag(key, value) for key, value in (changed | tags).items()]
    for start in range(0, len(all_tags), PARAMS_PER_CALL):
        client.log_batch(run_id, tags=all_tags[start : start + PARAMS_PER_CALL])


def _read(folder: Path, uri: str) -> MlflowRun | None:
    """The run noted in the folder, if it is one at ``uri``."""
    try:
        noted = json.loads((folder / RUN_FILE).read_text())
        if noted["uri"] != uri:
            return None
        return MlflowRun(uri=uri, run_id=str(noted["run_id"]), run_folder=str(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(run: MlflowRun) -> None:
    noted = json.dumps({"uri": run.uri, "run_id": run.run_id})
    write_atomic(Path(run.run_folder) / RUN_FILE, noted + "\n")
