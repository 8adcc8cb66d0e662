"""xtdist config CONFIG [key.path=value ...]: what a run or a dataset is, each value with its
source."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from xtdist.config import load, to_mapping
from xtdist.config.defaults import other_than_default
from xtdist.config.load import leaves
from xtdist.data import PrepareConfig
from xtdist.train.spec import RunSpec

WIDEST = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML of a run, or of a dataset to prepare")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument(
        "--all", action="store_true", help="also the values that are left at their defaults"
    )


def run(args: argparse.Namespace) -> int:
    loaded = load(_kind(args.config), args.config, args.overrides)
    for note in loaded.notes:
        print(f"# {note}")
    rows = leaves(to_mapping(loaded.config))
    other = set(other_than_default(loaded.config))
    written = {k for k, source in loaded.sources.items() if not source.startswith("preset ")}
    shown = [row for row in rows if args.all or row[0] in other | written]
    left = max(len(path) for path, _ in shown) + 1
    right = min(max(len(repr(value)) for _, value in shown), WIDEST)
    for path, value in shown:
        source = loaded.sources.get(path, "default")
        print(f"{path + ':':<{left}} {value!r:<{right}}  # {source}")
    if len(shown) < len(rows):
        print(f"# {len(rows) - len(shown)} more values are at their defaults: --all shows them")
    return 0


def _kind(path: str) -> type[RunSpec] | type[PrepareConfig]:
    """What a file configures, by a key that only the one has."""
    try:
        tree = yaml.safe_load(Path(path).read_bytes())
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return RunSpec  # and loading says what is wrong with it
    return PrepareConfig if isinstance(tree, dict) and "source" in tree else RunSpec
