"""xtdist sweep CONFIG [key.path=value ...]"""

from __future__ import annotations

import argparse
import dataclasses
import sys

from xtdist.config import load
from xtdist.launch.sweep.draw import shown
from xtdist.launch.sweep.run import plan_sweep, run_sweep
from xtdist.launch.sweep.spec import SweepSpec
from xtdist.launch.sweep.table import text_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML of the sweep, as jobs/configs/sweep_demo.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.path=value",
        help="of the sweep, or of all its runs (loop.steps=200)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, list the trials, start nothing"
    )


def run(args: argparse.Namespace) -> int:
    own = {field.name for field in dataclasses.fields(SweepSpec)}
    ours = [text for text in args.overrides if text.partition("=")[0].split(".")[0] in own]
    loaded = load(SweepSpec, args.config, ours)
    of_runs = tuple(text for text in args.overrides if text not in ours)
    sweep = dataclasses.replace(loaded.config, overrides=(*loaded.config.overrides, *of_runs))
    if args.dry_run:
        folder, trials = plan_sweep(sweep)
        for trial in trials:
            print(f"{trial.name}: {shown(trial.values)}")
        print(f"{len(trials)} trials would run in {folder}")
        return 0
    outcome = run_sweep(sweep)
    print(text_table(sweep, outcome.results))
    if outcome.best is not None:
        print(f"best: {outcome.best.name}, {shown(outcome.best.values)}")
        print(f"train it again, or longer: xtdist train {outcome.folder / 'best.yaml'}")
    print(f"table, plot and runs are in {outcome.folder}")
    if outcome.interrupted:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0 if outcome.best is not None else 1
