"""xtdist register WEIGHTS NAME[@ALIAS] [--registry URI]"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from xtdist.config import ConfigError
from xtdist.serve.config import ServedModel
from xtdist.serve.places import check_served
from xtdist.track.lookup import RUN_FILE
from xtdist.track.registry import SCHEME, register


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights", help="a run (its newest checkpoint), a checkpoint, a weights folder"
    )
    parser.add_argument("name", metavar="NAME[@ALIAS]", help="the alias means it from now on")
    parser.add_argument(
        "--registry", help="MLflow's address (that of the run, else MLFLOW_TRACKING_URI)"
    )


def run(args: argparse.Namespace) -> int:
    name, mark, alias = args.name.partition("@")
    if not name or bool(mark) != bool(alias):
        raise ConfigError(f"register: got {args.name!r}; write it as name or name@alias")
    (found,) = check_served(ServedModel(name=name, weights=args.weights))
    uri, run_id = _noted(Path(args.weights))
    registry = args.registry or uri
    version = register(
        name,
        found.place,
        digest=found.digest,
        step=found.step,
        alias=alias or None,
        run_id=run_id if registry == uri else None,
        registry=registry,
    )
    print(f"{found.place} is {version.uri}" + (f" and {SCHEME}{args.name}" if alias else ""))
    return 0


def _noted(run: Path) -> tuple[str | None, str | None]:
    """The MLflow server and run of a training run's folder."""
    try:
        noted = json.loads((run / RUN_FILE).read_text())
        return str(noted["uri"]), str(noted["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
