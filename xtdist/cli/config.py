"""xtdist config CONFIG [key.path=value ...]: the resolved tree, each value with its source."""

from __future__ import annotations

import argparse

from xtdist.config import load, to_mapping
from xtdist.config.load import leaves
from xtdist.train.spec import RunSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML of a run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")


def run(args: argparse.Namespace) -> int:
    loaded = load(RunSpec, args.config, args.overrides)
    for path, value in leaves(to_mapping(loaded.config)):
        print(f"{path}: {value!r:<32}  # {loaded.sources.get(path, 'default')}")
    return 0
