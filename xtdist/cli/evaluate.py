"""xtdist evaluate WEIGHTS --data FOLDER: a model beside a bigram model and xz;
--tasks NAME_OR_YAML …: tasks of the lm-evaluation-harness."""

from __future__ import annotations

import argparse
from pathlib import Path

from xtdist.config import ConfigError
from xtdist.evaluate.report import evaluate
from xtdist.evaluate.tasks import run_tasks, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights",
        help="a run folder, a checkpoint, or a weights folder; RUN/weights-ema: averaged weights",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", help="the dataset folder (made by prepare)")
    what.add_argument(
        "--tasks",
        nargs="+",
        metavar="NAME_OR_YAML",
        help="instead of --data: tasks of the lm-evaluation-harness by name, YAML files of tasks, "
        "or folders of them",
    )
    parser.add_argument("--seq-len", type=int, help="window; the model's longest by default")
    parser.add_argument("--limit", type=int, help="so many documents of each task; all by default")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="keep the numbers there; those of --data, found there, are not computed again",
    )


def run(args: argparse.Namespace) -> int:
    saved = Path(args.json) if args.json else None
    if args.tasks:
        if args.seq_len is not None:
            raise ConfigError("--seq-len: belongs to --data; leave one of the two out")
        print(table(run_tasks(args.weights, args.tasks, limit=args.limit, saved=saved)))
        return 0
    if args.limit is not None:
        raise ConfigError("--limit: belongs to --tasks; leave one of the two out")
    print(evaluate(args.weights, args.data, seq_len=args.seq_len, saved=saved).table())
    return 0
