"""The task of ``loop.aside``: a process beside the workers, which looks at the weights of one
committed checkpoint. It needs no process group, no engine, and no folder but the data's and the
checkpoints'."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from xtdist.checkpoint import CheckpointStore, load_weights
from xtdist.checkpoint.weights import AVERAGED, WEIGHTS
from xtdist.config import configclass, from_mapping, to_mapping
from xtdist.train.run import open_data
from xtdist.train.samples import draw
from xtdist.train.spec import RunSpec
from xtdist.train.spec.aside import AsideSpec
from xtdist.train.validation import score


@configclass
class AsideJob:
    """``place``: of the run's checkpoints, of which ``name`` is one. ``validate``: or samples
    alone. ``gpu``: whether the task has one."""

    spec: RunSpec
    place: str
    name: str
    step: int
    validate: bool
    gpu: bool = False


@configclass
class Findings:
    """``texts``: a sample for each of ``loop.sample_prompts``."""

    metrics: dict[str, float]
    texts: list[str]


def examine(payload: dict[str, Any]) -> dict[str, Any]:
    """The findings on the checkpoint of an :class:`AsideJob`, both as mappings.

    Raises:
        UserError: the checkpoint or the data can't be read.
    """
    began = time.perf_counter()
    job = from_mapping(AsideJob, payload)
    spec, device = _alone(job.spec), "cuda" if job.gpu else "cpu"
    view = open_data(spec, "valid") if job.validate else None
    with tempfile.TemporaryDirectory(prefix="xtdist-aside-") as cache:
        store = CheckpointStore(job.place, cache=lambda: Path(cache))
        wanted = {WEIGHTS: ""}
        if view is not None and spec.optim.ema is not None and spec.optim.ema.evaluate:
            wanted[AVERAGED] = "ema_"
        files = [n for n in store.manifest(job.name).files if n.partition("/")[0] in wanted]
        folder = store.open(job.name, files).path
        metrics: dict[str, float] = {}
        texts: list[str] = []
        for name, prefix in wanted.items():
            loaded = load_weights(folder / name, device=device)
            if view is not None:
                metrics |= score(loaded.trained, view, spec, device=device, prefix=prefix)
            if name == WEIGHTS:
                texts = draw(loaded.trained, loaded.tokenizer, spec, step=job.step)
            del loaded
    metrics["perf/evaluate_s"] = time.perf_counter() - began
    return to_mapping(Findings(metrics=metrics, texts=texts))


def _alone(spec: RunSpec) -> RunSpec:
    """As for one process, which has whole sequences."""
    return dataclasses.replace(
        spec,
        engine=dataclasses.replace(spec.engine, sequence_parallel=1, hpz_partition_size=1),
        workers=dataclasses.replace(spec.workers, count=1, min_count=None),
    )


def in_a_cluster() -> bool:
    """Whether this process belongs to a Ray cluster."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


class Task:
    """:func:`examine` somewhere in the cluster that this process belongs to. It ends with this
    process."""

    def __init__(self, job: AsideJob, aside: AsideSpec) -> None:
        import ray

        self.job, self._until = job, time.monotonic() + 60 * aside.minutes
        remote = ray.remote(examine).options(
            num_cpus=aside.cpus,
            num_gpus=aside.gpus,
            max_retries=0,
            scheduling_strategy="DEFAULT",  # not within the workers' own resources
        )
        self._answer = remote.remote(to_mapping(job))

    def findings(self) -> Findings | None:
        """None: not yet.

        Raises:
            TimeoutError: it took too long.
            Exception: what it raised, or became of it.
        """
        import ray

        if ray.wait([self._answer], timeout=0)[0]:
            return from_mapping(Findings, ray.get(self._answer))
        if time.monotonic() > self._until:
            raise TimeoutError("it took longer than loop.aside.minutes")
        return None

    def cancel(self) -> None:
        """End it; raises nothing where it has ended."""
        import ray

        ray.cancel(self._answer, force=True)
