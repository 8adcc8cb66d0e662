"""From a RunSpec to a finished run: preflight, MLflow run, Ray Train workers, plots."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xtdist.checkpoint import CheckpointStore
from xtdist.config import ResourceError, UserError, to_mapping
from xtdist.connect import check_room, connect, disconnect
from xtdist.files import write_atomic
from xtdist.launch.preflight import Plan, preflight, resolve
from xtdist.track import MlflowRun, finish_run, open_run, read_series
from xtdist.track.console import follow
from xtdist.track.mlflow import RunStatus, flatten
from xtdist.track.plots import loss_html, loss_png
from xtdist.train.loop import ERROR_FILE, train_worker
from xtdist.train.run import STOP_FILE, WorkerJob
from xtdist.train.spec import RunSpec


class TrainingFailedError(RuntimeError):
    """Workers failed more often than ``workers.max_failures``."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``reused``: it was already finished, nothing was trained."""

    folder: Path
    step: int
    steps: int
    reused: bool

    @property
    def finished(self) -> bool:
        return self.step >= self.steps


def run_training(spec: RunSpec) -> Outcome:
    """Train ``spec`` to its end, going on from the newest checkpoint if there is one.

    Ctrl-C (or SIGTERM) saves a checkpoint and ends; the same call goes on from there.

    Raises:
        UserError: something is wrong that the user can fix.
        TrainingFailedError: workers kept failing.
    """
    spec = resolve(spec)
    workers = spec.workers
    # How often Ray Train looks at its workers; a run that has ended is noticed this much later.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    started = connect(dashboard=True)
    import ray

    try:
        cluster_gpus = int(ray.cluster_resources().get("GPU", 0))
        plan = preflight(spec, cluster_gpus=cluster_gpus)
        check_room("workers.count", workers.count, cpus=workers.cpus, gpus=plan.gpus_per_worker)
        print("\n".join(plan.lines()), flush=True)
        if plan.finished:
            more = "" if plan.done_step == spec.loop.steps else "; raise loop.steps to go on"
            print(f"already at step {plan.done_step} of {spec.loop.steps}: nothing to train{more}")
            return Outcome(plan.folder, plan.done_step, spec.loop.steps, reused=True)
        if plan.done_step:
            print(f"going on from the checkpoint at step {plan.done_step}", flush=True)
            for line in _changes(plan):
                print(f"  changed since then: {line}", flush=True)
        with _own_folder(plan):
            return _train(plan)
    finally:
        if started:
            disconnect()


def _changes(plan: Plan) -> list[str]:
    """Settings that a resumed run takes over changed, each with its old and new value."""
    try:
        before = flatten(yaml.safe_load((plan.folder / "config.yaml").read_text()))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    now = flatten(to_mapping(plan.spec))
    keys = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    return [f"{k} {before.get(k, '-')} → {now.get(k, '-')}" for k in keys]


@contextmanager
def _own_folder(plan: Plan) -> Iterator[None]:
    """The run's folder, ready, and for this process alone.

    Raises:
        ResourceError: it can't be written, or another process trains this run.
    """
    folder = plan.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_atomic(folder / "config.yaml", yaml.safe_dump(to_mapping(plan.spec), sort_keys=False))
        for stale in (STOP_FILE, ERROR_FILE):
            (folder / stale).unlink(missing_ok=True)
    except BlockingIOError:
        raise ResourceError(
            f"{folder}: another process is training this run; wait for it, or give this one "
            "another name"
        ) from None
    except OSError as e:
        raise ResourceError(f"output: {folder} can't be written ({e.strerror})") from None
    with lock:
        yield


def _train(plan: Plan) -> Outcome:
    folder = plan.folder
    tracked = _open_tracking(plan)
    job = WorkerJob(
        spec=plan.spec, folder=str(folder), mlflow=tracked, gpu=bool(plan.gpus_per_worker)
    )
    print(f"starting {plan.spec.workers.count} workers …", flush=True)
    error = _explain(_fit(plan, to_mapping(job)), folder)
    names = CheckpointStore(folder / "checkpoints").names()
    step = int(names[-1].split("_")[1].split("-")[0]) if names else 0
    finished = error is None and step >= plan.spec.loop.steps
    status: RunStatus = "FINISHED" if finished else "KILLED" if error is None else "FAILED"
    _close_tracking(folder, tracked, status=status)
    if error is not None:
        raise error
    return Outcome(folder, step, plan.spec.loop.steps, reused=False)


def _fit(plan: Plan, payload: dict[str, Any]) -> BaseException | None:
    """Run Ray Train in a thread, so that this one can show progress and take signals."""
    done, caught = threading.Event(), []

    def target() -> None:
        try:
            _trainer(plan, payload).fit()
        except BaseException as e:
            caught.append(e)
        finally:
            done.set()

    thread = threading.Thread(target=target, name="ray-train", daemon=True)
    with _stop_on_signal(plan.folder):
        thread.start()
        follow(plan.folder, plan.spec.loop.steps, stop=done)
        thread.join()
    return caught[0] if caught else None


def _trainer(plan: Plan, payload: dict[str, Any]) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    workers, gpu = plan.spec.workers, bool(plan.gpus_per_worker)
    return TorchTrainer(
        train_worker,
        train_loop_config=payload,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=600),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=gpu,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=str(plan.folder / "ray"),
            failure_config=ray.train.FailureConfig(
                max_failures=workers.max_failures, controller_failure_limit=3
            ),
        ),
    )


@contextmanager
def _stop_on_signal(folder: Path) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks the workers to save and end; the second one is obeyed."""

    def handler(number: int, frame: object) -> None:
        print("\nstopping: saving a checkpoint first (once more: at once)", flush=True)
        (folder / STOP_FILE).touch()
        signal.signal(number, previous[signal.Signals(number)])

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {n: signal.signal(n, handler) for n in numbers}
    try:
        yield
    finally:
        for n in numbers:
            signal.signal(n, previous[n])


def _explain(error: BaseException | None, folder: Path) -> Exception | None:
    """The workers' own clear error if they left one, else what Ray says."""
    try:
        raw = json.loads((folder / ERROR_FILE).read_text())
    except FileNotFoundError:
        if error is None:
            return None
        return TrainingFailedError(f"{error}\nThe same command goes on from the last checkpoint.")
    kinds: dict[str, type[UserError]] = {k.__name__: k for k in UserError.__subclasses__()}
    return kinds.get(raw["kind"], UserError)(raw["message"])


def _open_tracking(plan: Plan) -> MlflowRun | None:
    run = open_run(
        plan.spec.track,
        run_folder=plan.folder,
        name=plan.spec.name,
        params=to_mapping(plan.spec),
        tags={
            "dataset_id": ", ".join(c.dataset_id for c in plan.corpora),
            "parameters": str(plan.parameters),
        },
    )
    if run is not None:
        for corpus in plan.corpora:
            profile = {"tokens": corpus.tokens, "documents": corpus.documents}
            run.log_dataset(corpus.dataset_id, corpus.path, profile)
    return run


def _close_tracking(folder: Path, run: MlflowRun | None, *, status: RunStatus) -> None:
    """Plots and config to MLflow, then the run's end. A tracking error never fails a run."""
    artifacts = [folder / "config.yaml"]
    if read_series(folder):  # a run that failed at its start has nothing to plot
        artifacts.append(loss_png([folder], folder / "loss.png"))
        artifacts.append(loss_html([folder], folder / "loss.html"))
    if run is not None:
        for path in artifacts:
            run.log_artifact(path)
        finish_run(run, status)
