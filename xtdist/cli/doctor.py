"""xtdist doctor [CONFIG] [key.path=value ...]"""

from __future__ import annotations

import argparse
import os
import sys

from xtdist.config import load
from xtdist.doctor import as_json, as_text, exit_code
from xtdist.doctor.examine import examine
from xtdist.doctor.target import target_of
from xtdist.train.spec import RunSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="YAML of a run: its paths, workers, GPUs too")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument(
        "--address", help="of a Ray cluster, to look at each node of it (else RAY_ADDRESS)"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    spec = load(RunSpec, args.config, args.overrides).config if args.config else None
    findings = examine(target_of(spec), address=args.address)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(as_json(findings) if args.json else as_text(findings, colour=colour))
    return exit_code(findings)
