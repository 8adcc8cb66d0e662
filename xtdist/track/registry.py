"""Models in MLflow's registry: which weights ``models:/name@alias`` and ``models:/name/3`` mean.

A version that :func:`register` makes holds no weights: its tags are the place of a checkpoint's, on
a disk that all machines see or an object store, their digest and step. If the checkpoint is a
LoggedModel of its run (``xtdist.track.models``), the version is of that model, which MLflow can
load too; a version that MLflow's own ``register_model`` makes of one means the same. A version made
otherwise, with a weights folder as its artifacts, is fetched to this host.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtdist.config import ConfigError, ResourceError
from xtdist.track.mlflow import brief, connect, tracking_uri
from xtdist.track.models import DIGEST_TAG, PLACE_TAG, STEP_TAG, UPLOADED_TAG, logged_models

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCHEME = "models:/"
_FORM = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[1-9][0-9]*))")
_URI_VARIABLE = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One version. ``source``: where its weights lie; ``digest``: of them, None if nobody noted
    it."""

    name: str
    version: int
    source: str
    digest: str | None

    @property
    def uri(self) -> str:
        """It, and never another one."""
        return f"{SCHEME}{self.name}/{self.version}"


def is_registered(place: str) -> bool:
    """Whether a place of weights names a model of the registry."""
    return place.startswith(SCHEME)


def absolute_address(registry: str | None) -> str | None:
    """The registry as a process with another folder and environment finds it; None: there is
    none."""
    uri = registry or os.environ.get(_URI_VARIABLE)
    return uri and tracking_uri(uri, ".")


def find_version(uri: str, *, registry: str | None = None) -> ModelVersion:
    """What ``models:/name@alias`` or ``models:/name/3`` means now.

    Args:
        registry: MLflow's address; None: MLFLOW_TRACKING_URI.

    Raises:
        ConfigError: another form, or no such model, alias or version.
        ResourceError: the registry does not answer.
    """
    match = _FORM.fullmatch(uri)
    if match is None:
        raise ConfigError(f"{uri}: write it as models:/name@alias or models:/name/3")
    client = _connect(registry, uri)
    name = match["name"]
    try:
        if match["alias"] is not None:
            found = client.get_model_version_by_alias(name, match["alias"])
        else:
            found = client.get_model_version(name, match["version"])
        tags = _tags(client, found)
    except Exception as e:
        if getattr(e, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise ConfigError(f"{uri}: not in the registry: {brief(e)}") from None
        raise ResourceError(f"{uri}: the registry does not answer ({brief(e)})") from None
    uploaded = tags.get(UPLOADED_TAG) == "true"
    return ModelVersion(
        name=name,
        version=int(found.version),
        source=str(found.source if uploaded else tags.get(PLACE_TAG, found.source)),
        digest=tags.get(DIGEST_TAG),
    )


def fetch_artifacts(version: ModelVersion, *, registry: str | None = None) -> Path:
    """The files of a version whose source is in MLflow's own store, on this host.

    Raises:
        ResourceError: they can't be had.
    """
    client = _connect(registry, version.uri)
    folder = Path("~/.cache/xtdist/models").expanduser() / version.name / str(version.version)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        from mlflow.artifacts import download_artifacts

        found = download_artifacts(
            artifact_uri=version.source, dst_path=str(folder), tracking_uri=client.tracking_uri
        )
    except Exception as e:
        raise ResourceError(f"{version.uri}: its files can't be fetched ({brief(e)})") from None
    weights = Path(found) / "artifacts" / "weights"  # of a LoggedModel
    return weights if weights.is_dir() else Path(found)


def register(
    name: str,
    source: str,
    *,
    digest: str,
    step: int | None = None,
    alias: str | None = None,
    run_id: str | None = None,
    registry: str | None = None,
) -> ModelVersion:
    """Add a version whose weights lie at ``source``; ``alias`` means it from now on.

    Raises:
        ConfigError: a name or alias that MLflow does not take.
        ResourceError: the registry does not answer, or takes no such source.
    """
    if _FORM.fullmatch(f"{SCHEME}{name}@{alias or 'a'}") is None:
        raise ConfigError(f"register: name {name!r}, alias {alias!r}: without '/' and '@'")
    client = _connect(registry, name)
    tags = {DIGEST_TAG: digest, STEP_TAG: "" if step is None else str(step), PLACE_TAG: source}
    try:
        model = _logged(client, run_id, digest)
        at = source if model is None else f"{SCHEME}{model}"
        if not client.search_registered_models(f"name='{name}'", max_results=1):
            client.create_registered_model(name)
        with _as_default(client.tracking_uri):
            made = client.create_model_version(
                name, source=at, run_id=run_id, tags=tags, model_id=model
            )
        if alias is not None:
            client.set_registered_model_alias(name, alias, made.version)
    except Exception as e:
        raise ResourceError(
            f"register: MLflow did not take {source} as a version of {name} ({brief(e)}); a server "
            "takes weights on an object store (checkpoint.url), not folders of this machine"
        ) from None
    return ModelVersion(name=name, version=int(made.version), source=source, digest=digest)


def _logged(client: MlflowClient, run_id: str | None, digest: str) -> str | None:
    """The id of the run's model with these weights."""
    if run_id is None:
        return None
    experiment = client.get_run(run_id).info.experiment_id
    for model in logged_models(client, experiment, run_id):
        if model.tags.get(DIGEST_TAG) == digest and str(model.status) == "READY":
            return str(model.model_id)
    return None


@contextmanager
def _as_default(uri: str) -> Iterator[None]:
    """MLflow looks up ``models:/<id>`` at its default address, whatever the client's is."""
    import mlflow

    variable = os.environ.get(_URI_VARIABLE)  # MLflow writes it with each default address
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None if before == variable else before)
        if variable is not None:
            os.environ[_URI_VARIABLE] = variable


def _tags(client: MlflowClient, version: Any) -> dict[str, str]:
    """Its tags, and those of the LoggedModel that it is a version of."""
    if not version.model_id:
        return dict(version.tags)
    return {**client.get_logged_model(version.model_id).tags, **version.tags}


def _connect(registry: str | None, what: str) -> Any:
    uri = registry or os.environ.get(_URI_VARIABLE)
    if uri is None:
        raise ConfigError(
            f"{what}: which registry? Set registry (xtdist serve) or {_URI_VARIABLE} to MLflow's "
            "address, as http://host:5000 or sqlite:////path/mlflow.db"
        )
    return connect(uri)
