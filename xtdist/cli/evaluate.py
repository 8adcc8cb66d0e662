"""xtdist evaluate WEIGHTS [--data FOLDER]: a model beside a bigram model and xz."""

from __future__ import annotations

import argparse
from pathlib import Path

from xtdist.evaluate.report import evaluate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights",
        help="a run folder, a checkpoint, or a weights folder; RUN/weights-ema: averaged weights",
    )
    parser.add_argument("--data", required=True, help="the dataset folder (made by prepare)")
    parser.add_argument("--seq-len", type=int, help="window; the model's longest by default")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="keep the numbers there; found there, nothing is computed again",
    )


def run(args: argparse.Namespace) -> int:
    saved = Path(args.json) if args.json else None
    report = evaluate(args.weights, args.data, seq_len=args.seq_len, saved=saved)
    print(report.table())
    return 0
