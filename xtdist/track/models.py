"""A run's checkpoints as MLflow's LoggedModels.

Nothing is queued: :meth:`ModelSync.sync` compares what the storage holds with what MLflow has, and
mends the difference. So an outage, a killed driver or a resume loses and doubles nothing.

A model is a reference: its files are the code that loads it and the place and digest of the
weights, which stay in the run's storage. One whose weights were deleted there has the tag
``xtdist.state`` = ``deleted``.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtdist.track.datasets import Measured
from xtdist.track.mlflow import MlflowRun, connect
from xtdist.track.records import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

CHECKPOINT_TAG, PLACE_TAG = "xtdist.checkpoint", "xtdist.place"
DIGEST_TAG, STEP_TAG, STATE_TAG = "xtdist.digest", "xtdist.step", "xtdist.state"
UPLOADED_TAG, BYTES_TAG = "xtdist.uploaded", "xtdist.bytes"
KEPT, DELETED = "kept", "deleted"
REFERENCE = "reference.json"
MAX_PARAM_CHARS = 500
_PAGE = 100
# Of xtdist.decode.text.Settings, with MLflow's types; these are also the defaults of the endpoint
# that MLflow makes of a model.
PARAMS: tuple[tuple[str, str, Any], ...] = (
    ("method", "string", ""),
    ("max_tokens", "long", 64),
    ("temperature", "double", 0.8),
    ("top_k", "long", 0),
    ("top_p", "double", 0.95),
    ("min_p", "double", 0.0),
    ("repetition_penalty", "double", 1.0),
    ("num_beams", "long", 1),
    ("length_penalty", "double", 1.0),
    ("seed", "long", 0),
)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A checkpoint in the storage.

    Args:
        name: of the checkpoint.
        place: where its weights lie, for who loads them.
        digest: of the weights' manifest.
        size: bytes of the weights.
        params: of the model, flat.
    """

    name: str
    step: int
    place: str
    digest: str
    size: int
    params: Mapping[str, str]


@dataclass
class ModelSync:
    """Keeps the LoggedModels of ``run`` like the storage.

    Args:
        code: the file with the ``PythonModel``, see ``python_model`` of ``mlflow.pyfunc``.
        fetch: the folder with a checkpoint's weights on this host, for an upload.
        upload_bytes: weights up to this size are uploaded with the model.
    """

    run: MlflowRun
    code: Path
    measured: Measured
    fetch: Callable[[Kept], Path]
    upload_bytes: int = 0
    _values: dict[int, dict[str, tuple[float, int]]] = field(default_factory=dict)

    def saw(self, records: Iterable[Record]) -> None:
        """Metrics of the run, in order: validations at a step go to the model of that step."""
        for record in records:
            values = {
                name: (value, round(record.time * 1000))
                for name, value in record.values.items()
                if name.startswith("eval/") and math.isfinite(value)
            }
            if values:
                self._values.setdefault(record.step, {}).update(values)

    def sync(self, kept: Sequence[Kept]) -> None:
        """Raises whatever MLflow or the storage raises; the next call goes on where it stood."""
        client = connect(self.run.uri)
        experiment = client.get_run(self.run.run_id).info.experiment_id
        known: dict[str, LoggedModel] = {}
        for model in logged_models(client, experiment, self.run.run_id):
            known.setdefault(model.tags.get(CHECKPOINT_TAG, ""), model)
        for one in kept:
            model = known.get(one.name)
            if model is None:
                model = self._create(client, experiment, one)
            if str(model.status) != "READY":
                self._complete(client, model, one)
            self._link(client, model, one)
        self._mark(client, known, {one.name for one in kept})

    def _create(self, client: MlflowClient, experiment: str, one: Kept) -> LoggedModel:
        params = {k: v[:MAX_PARAM_CHARS] for k, v in one.params.items()}
        return client.create_logged_model(
            experiment,
            name=f"step_{one.step:08d}",
            source_run_id=self.run.run_id,
            params={"step": str(one.step), **params},
            tags={
                CHECKPOINT_TAG: one.name,
                PLACE_TAG: one.place,
                DIGEST_TAG: one.digest,
                STEP_TAG: str(one.step),
                BYTES_TAG: str(one.size),
                UPLOADED_TAG: str(0 < one.size <= self.upload_bytes).lower(),
                STATE_TAG: KEPT,
            },
            model_type="xtdist",
        )

    def _complete(self, client: MlflowClient, model: LoggedModel, one: Kept) -> None:
        """Its files, its place among the run's outputs, and that it is ready."""
        from mlflow.entities import LoggedModelOutput

        weights = self.fetch(one) if 0 < one.size <= self.upload_bytes else None
        with tempfile.TemporaryDirectory(prefix="xtdist-model-") as folder:
            files = Path(folder) / "model"
            write_model(files, model=model, one=one, code=self.code, weights=weights)
            client.log_model_artifacts(model.model_id, str(files))
        client.log_outputs(self.run.run_id, [LoggedModelOutput(model.model_id, one.step)])
        client.finalize_logged_model(model.model_id, "READY")

    def _link(self, client: MlflowClient, model: LoggedModel, one: Kept) -> None:
        """The metrics of its step that it has not yet."""
        from mlflow.entities import Metric

        have = {(m.key, m.value) for m in model.metrics or ()}
        points = []
        for name, (value, at) in self._values.get(one.step, {}).items():
            if (name, value) in have:
                continue
            data = self.measured.of(name)
            points.append(
                Metric(
                    name,
                    value,
                    at,
                    one.step,
                    model_id=model.model_id,
                    dataset_name=data.title if data else None,
                    dataset_digest=data.digest if data else None,
                    run_id=self.run.run_id,
                )
            )
        if points:
            client.log_batch(self.run.run_id, metrics=points)

    def _mark(self, client: MlflowClient, known: Mapping[str, LoggedModel], kept: set[str]) -> None:
        for name, model in known.items():
            state = KEPT if name in kept else DELETED
            if name and model.tags.get(STATE_TAG) != state:
                client.set_logged_model_tags(model.model_id, {STATE_TAG: state})


def logged_models(client: MlflowClient, experiment: str, run_id: str) -> list[LoggedModel]:
    """The models of a run."""
    found: list[LoggedModel] = []
    token = None
    while True:
        page = client.search_logged_models(
            [experiment], f"source_run_id = '{run_id}'", max_results=_PAGE, page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


def write_model(
    folder: Path, *, model: LoggedModel, one: Kept, code: Path, weights: Path | None
) -> None:
    """MLflow's files of a model, with a signature: texts in, texts out, and PARAMS."""
    from importlib.metadata import version

    from mlflow.models import Model
    from mlflow.pyfunc import save_model
    from mlflow.types import ParamSchema, ParamSpec

    reference = folder.parent / REFERENCE
    noted = {"place": one.place, "digest": one.digest, "step": one.step, "checkpoint": one.name}
    reference.write_text(json.dumps(noted), encoding="utf-8")
    artifacts = {"reference": str(reference)}
    if weights is not None:
        artifacts["weights"] = str(weights)
    save_model(
        str(folder),
        python_model=str(code),
        artifacts=artifacts,
        mlflow_model=Model(run_id=model.source_run_id, model_id=model.model_id),
        pip_requirements=[f"{name}=={version(name)}" for name in ("xtdist", "torch", "mlflow")],
    )
    written = Model.load(str(folder))
    written.signature.params = ParamSchema([ParamSpec(n, t, d) for n, t, d in PARAMS])
    written.save(str(folder / "MLmodel"))
