"""xtdist evaluate WEIGHTS [--data FOLDER]: a model beside a bigram model and xz."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from xtdist.evaluate.report import evaluate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", help="a run folder, a checkpoint, or a weights folder")
    parser.add_argument("--data", required=True, help="the dataset folder (made by prepare)")
    parser.add_argument("--seq-len", type=int, help="window; the model's longest by default")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")


def run(args: argparse.Namespace) -> int:
    report = evaluate(Path(args.weights), Path(args.data), seq_len=args.seq_len)
    print(report.table())
    if args.json:
        Path(args.json).write_text(json.dumps(report.numbers(), indent=1))
    return 0
