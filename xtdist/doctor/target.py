"""What a run needs of a machine: from its config, or nothing in particular."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from xtdist.data.storage.config import CacheConfig
from xtdist.data.storage.location import is_remote
from xtdist.doctor.storage import Place
from xtdist.launch.datasets import data_paths, local_path
from xtdist.train.spec import RunSpec


@dataclass(frozen=True)
class Target:
    """``output``: the runs' folder. ``tracking``: an MLflow server's address. ``workers``: of a
    run, each with so many CPUs; ``gpus``: whether each must have a GPU."""

    output: str | None = None
    places: tuple[Place, ...] = ()
    tracking: str | None = None
    cache: CacheConfig = field(default_factory=CacheConfig)
    workers: int = 0
    cpus: int = 1
    gpus: bool = False


def target_of(spec: RunSpec | None) -> Target:
    """Of a config; without one, of the environment (MLFLOW_TRACKING_URI)."""
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    if spec is None:
        return Target(tracking=server if server.startswith("http") else None)
    output = str(local_path("output", spec.output))
    places = [Place("output", output, write=True)]
    if spec.checkpoint.url is not None:
        url = spec.checkpoint.url
        given = url if is_remote(url) else str(Path(url).expanduser().resolve())
        places.append(Place("checkpoint.url", given, write=True))
    places += [Place(key, path, write=False) for key, path in data_paths(spec.data).items()]
    uri = spec.track.uri if spec.track.mlflow else None
    if uri is not None and uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        places.append(Place("track.uri", str(folder.resolve()), write=True))
    return Target(
        output=output,
        places=tuple(places),
        tracking=uri if uri is not None and uri.startswith("http") else None,
        cache=spec.data.cache,
        workers=spec.workers.least,
        cpus=spec.workers.cpus,
        gpus=spec.workers.device == "gpu",
    )
