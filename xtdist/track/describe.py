"""What MLflow knows about a run, in a few lines."""

from __future__ import annotations

import json
from pathlib import Path

from xtdist.config import ResourceError
from xtdist.track.lookup import RUN_FILE
from xtdist.track.mlflow import connect

SHOWN = (
    "train/loss",
    "eval/valid/loss",
    "eval/valid/bits_per_byte",
    "train/lr",
    "train/grad_norm",
    "perf/tokens_per_s",
    "perf/mfu",
    "perf/goodput",
)


def describe_run(run_folder: str | Path) -> str:
    """The run of ``run_folder`` as MLflow's own API lists it.

    Raises:
        ResourceError: the run is not tracked, or MLflow can't be reached.
    """
    path = Path(run_folder) / RUN_FILE
    try:
        at = json.loads(path.read_text())
        client = connect(at["uri"])
        run = client.get_run(at["run_id"])
        artifacts = [a.path for a in client.list_artifacts(run.info.run_id)]
    except FileNotFoundError:
        raise ResourceError(f"{path}: not there; the run was not tracked by MLflow") from None
    except Exception as e:
        raise ResourceError(f"MLflow at {at['uri']} can't be read: {e}") from None
    metrics = run.data.metrics
    rows = [
        f"run {run.info.run_name} ({run.info.run_id}): {run.info.status}",
        f"  {len(run.data.params)} params, {len(metrics)} metrics; "
        f"dataset {run.data.tags.get('dataset_id', '-')[:12]}; artifacts {', '.join(artifacts)}",
    ]
    rows += [f"  {name:<26}{metrics[name]:.5g}" for name in SHOWN if name in metrics]
    return "\n".join(rows)
