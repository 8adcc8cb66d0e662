"""xtdist report RUN [--output FILE]"""

from __future__ import annotations

import argparse

from xtdist.report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's folder; the run may be going on, or have failed")
    parser.add_argument("--output", metavar="FILE", help="default: RUN/report.html")
    parser.add_argument(
        "--local",
        action="store_true",
        help="don't ask object stores for the run's checkpoints and datasets",
    )


def run(args: argparse.Namespace) -> int:
    print(write_report(args.run, args.output, remote=not args.local))
    return 0
