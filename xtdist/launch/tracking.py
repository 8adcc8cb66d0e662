"""What the driver of a run tells MLflow: the run, its data, its checkpoints and its files.

All of it is sent by the driver, in a thread: no step waits for it.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xtdist.checkpoint import CheckpointStore
from xtdist.checkpoint.layout import read_manifest
from xtdist.checkpoint.weights import WEIGHTS
from xtdist.config import CheckpointError, digest, to_mapping
from xtdist.data import TokenDataset
from xtdist.launch.planned import FILE as PLAN_FILE
from xtdist.launch.preflight import Plan
from xtdist.report import try_report
from xtdist.track import MlflowRun, finish_run, open_run, read_series
from xtdist.track.datasets import Measured, TokenData
from xtdist.track.environment import environment
from xtdist.track.mlflow import RunStatus, brief, flatten
from xtdist.track.models import Kept, ModelSync
from xtdist.track.plots import loss_html, loss_png
from xtdist.track.records import Tail
from xtdist.track.shipper import Shipment
from xtdist.track.system import FOLDER as SYSTEM
from xtdist.train.callbacks.in_force import FILE as IN_FORCE_FILE
from xtdist.train.spec import RunSpec

CODE = Path(__file__).parent / "pyfunc_model.py"
LOOK_S = 10.0
_MB = 10**6
_PARTS = ("model", "objective", "optim", "batch", "data", "seed")
_log = logging.getLogger(__name__)


@dataclass
class Tracking:
    """The MLflow run of ``plan``; ``run`` is None where MLflow is off."""

    plan: Plan
    run: MlflowRun | None
    data: list[TokenData] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec, folder = self.plan.spec, self.plan.folder
        self._store = CheckpointStore(spec.checkpoint.place(folder))
        self._tail = Tail(folder)
        self._warned = False
        self._nodes: dict[Path, Shipment] = {}
        self._described: dict[str, Kept] = {}
        self._sync = None
        if self.run is not None:
            self._sync = ModelSync(
                self.run,
                CODE,
                Measured(tuple(self.data)),
                self._fetch,
                upload_bytes=int(spec.track.upload_weights_mb * _MB),
            )

    @contextmanager
    def following(self) -> Iterator[None]:
        """Log checkpoints as they come and go, until the end of the block."""
        over = threading.Event()

        def follow() -> None:
            while not over.wait(LOOK_S):
                self.log_models()

        thread = threading.Thread(target=follow, name="mlflow-models", daemon=True)
        if self._sync is not None:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if thread.is_alive():
                thread.join(60.0)

    def log_models(self) -> bool:
        """Bring MLflow's models up to date; False (with a warning) if that did not work."""
        if self._sync is None:
            return True
        try:
            self._ship_nodes()
            self._sync.saw(self._tail.poll_all())
            self._sync.sync([one for n in self._store.names() if (one := self._kept(n))])
        except Exception as e:  # the server, the storage: later, or at the next start
            if not self._warned:
                _log.warning("MLflow has not all checkpoints yet: %s", brief(e))
            self._warned = True
            return False
        self._warned = False
        return True

    def close(self, status: RunStatus) -> None:
        """Checkpoints, plots and the config to MLflow, then the run's end. Nothing here fails a
        run."""
        folder = self.plan.folder
        names = ("config.yaml", IN_FORCE_FILE, PLAN_FILE)
        paths = [folder / name for name in names]
        if read_series(folder):  # a run that failed at its start has nothing to plot
            paths += [loss_png([folder], folder / "loss.png")]
            paths += [loss_html([folder], folder / "loss.html")]
        paths += filter(None, [try_report(folder)])
        if self.run is not None:
            self.log_models()
            self.run.log_text(_summary(self.plan, status), "summary.json")
            self.run.log_text(json.dumps(environment(), indent=1), "environment.json")
            for path in paths:
                if path.is_file():
                    self.run.log_artifact(path)
            finish_run(self.run, status)

    def _kept(self, name: str) -> Kept | None:
        """None: it was deleted since it was listed, or can't be read."""
        if name not in self._described:
            try:
                manifest = self._store.manifest(name)
            except CheckpointError:
                return None
            files = {n: f for n, f in manifest.files.items() if n.startswith(f"{WEIGHTS}/")}
            folder = self._store.open(name, [f"{WEIGHTS}/manifest.json"]).path / WEIGHTS
            url, mark, options = str(self._store.url).partition("?")
            # An object store's place is the checkpoint's, a folder's is that of the weights.
            place = f"{url}/{name}{mark}{options}" if "://" in url else str(folder)
            config: dict[str, Any] = manifest.meta.get("config", {})
            self._described[name] = Kept(
                name=name,
                step=int(manifest.meta["step"]),
                place=place,
                digest=digest(read_manifest(folder)),
                size=sum(f.bytes for f in files.values()),
                params=flatten({k: config[k] for k in _PARTS if k in config}),
            )
        return self._described[name]

    def _ship_nodes(self) -> None:
        """The system metrics of all nodes."""
        assert self.run is not None
        for folder in sorted((self.plan.folder / SYSTEM).glob("*/")):
            run = dataclasses.replace(self.run, run_folder=str(folder))
            shipment = self._nodes.setdefault(folder, Shipment(run))
            while shipment.some():
                pass

    def _fetch(self, one: Kept) -> Path:
        files = [n for n in self._store.manifest(one.name).files if n.startswith(f"{WEIGHTS}/")]
        return self._store.open(one.name, files).path / WEIGHTS


def open_tracking(plan: Plan) -> Tracking:
    """Raises as :func:`xtdist.track.open_run`."""
    spec = plan.spec
    run = open_run(
        spec.track,
        run_folder=plan.folder,
        name=spec.name,
        params=to_mapping(spec),
        tags={
            "dataset_id": ", ".join(c.dataset_id for c in plan.corpora),
            "parameters": str(plan.parameters),
            **origin(),
        }
        if spec.track.mlflow
        else {},
    )
    if run is None:
        return Tracking(plan, None)
    data = datasets_of(spec)
    run.log_inputs(data)
    return Tracking(plan, run, data)


def datasets_of(spec: RunSpec) -> list[TokenData]:
    """Both splits of all that a run reads."""
    several = bool(spec.data.corpora)
    return [
        TokenData(
            path=spec.data.sources[name],
            dataset_id=dataset.dataset_id,
            context="training" if split == "train" else "validation",
            tokens=dataset.total_tokens,
            documents=dataset.num_documents,
            name=name if several else "",
        )
        for split in ("train", "valid")
        for name in spec.data.sources
        for dataset in [TokenDataset.open(spec.data.sources[name], split, "size", spec.data.cache)]
    ]


def origin() -> dict[str, str]:
    """Tags: the commit, the versions, the Ray job and its cluster."""
    import ray

    here = environment()
    packages = here["packages"]
    tags = {f"version.{n}": packages[n] for n in _VERSIONS if n in packages}
    tags |= {"version.python": here["python"]}
    tags |= {"mlflow.source.name": "xtdist", "mlflow.source.type": "JOB"}
    with suppress(OSError, KeyError):  # a user without a name, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    if here["git"]:
        tags |= {"mlflow.source.git.commit": here["git"], "git.dirty": str(here["changed"]).lower()}
    if ray.is_initialized():
        context = ray.get_runtime_context()
        tags |= {"ray.job_id": context.get_job_id(), "ray.cluster": context.gcs_address}
    return tags


_VERSIONS = ("xtdist", "torch", "deepspeed", "ray", "mlflow")


def _summary(plan: Plan, status: RunStatus) -> str:
    """The last value of every metric and how the run ended, as JSON."""
    series = read_series(plan.folder)
    last = {name: s.values[-1] for name, s in sorted(series.items()) if s.values}
    steps = max((s.steps[-1] for s in series.values() if s.steps), default=0)
    found = {"name": plan.spec.name, "status": status, "step": steps, "last": last}
    return json.dumps(found, indent=1, default=str)
