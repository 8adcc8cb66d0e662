"""xtdist train CONFIG [key.path=value ...]"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from xtdist.cli.plan import EPILOG, OPTIONS, add_options, show
from xtdist.config import ConfigError, load
from xtdist.config.load import parse_value
from xtdist.launch.datasets import data_paths, local_path
from xtdist.launch.submit import ROOT, submit
from xtdist.launch.trainer import TrainingFailedError, run_training
from xtdist.track import read_goodput
from xtdist.train.spec import RunSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML of the run, as jobs/configs/demo_ar.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument(
        "--submit",
        metavar="ADDRESS",
        help="send it to this Ray cluster's job server (http://host:8265) with `ray job submit`",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check what can be without a cluster, show the plan, and end",
    )
    parser.epilog = f"With --dry-run: {EPILOG}"
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    loaded = load(RunSpec, args.config, args.overrides)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    spec = loaded.config
    if args.dry_run:
        if args.submit:
            raise ConfigError("train: --dry-run sends nothing; leave out --submit")
        return show(spec, args, checks=True)
    for name in OPTIONS:
        if getattr(args, name):
            raise ConfigError(f"--{name.replace('_', '-')}: only --dry-run has it; leave it out")
    if args.submit:
        return _submit(args, spec)
    try:
        outcome = run_training(spec)
    except TrainingFailedError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    if not outcome.finished:
        print(f"stopped at step {outcome.step} of {outcome.steps}; the same command goes on")
        return 130
    print(f"step {outcome.step} of {outcome.steps} done; all of it is in {outcome.folder}")
    if not outcome.reused:
        print(read_goodput(outcome.folder).text())
    return 0


def _submit(args: argparse.Namespace, spec: RunSpec) -> int:
    """The job runs elsewhere in the tree: paths that are relative here are made absolute."""
    paths = {"output": str(local_path("output", spec.output)), **data_paths(spec.data)}
    fixed = [f"{key}={_quoted(path)}" for key, path in paths.items()]
    others = [o for o in args.overrides if o.partition("=")[0] not in paths]
    config = Path(args.config).resolve()
    inside = config.relative_to(ROOT) if config.is_relative_to(ROOT) else config
    entrypoint = ["python", "jobs/train.py", str(inside), *others, *fixed]
    return submit(args.submit, entrypoint, name=spec.name)


def _quoted(path: str) -> str:
    """As an override's value: quoted where YAML would read something else."""
    try:
        return path if parse_value(path) == path else json.dumps(path)
    except (ConfigError, ValueError):
        return json.dumps(path)
