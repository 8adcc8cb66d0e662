"""xtdist config CONFIG [key.path=value ...]: what a run or a dataset is, each value with its
source."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from xtdist.config import load, to_mapping
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
    other = set(_other_than_default(loaded.config))
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


def _other_than_default(config: Any, default: Any = None, path: str = "") -> Iterator[str]:
    """The values that differ from ``default``, or from their own class's without one; all values of
    parts of another kind, or that are off by default."""
    for field in dataclasses.fields(config):
        value, here = getattr(config, field.name), f"{path}{field.name}"
        usual = _default_of(field) if default is None else getattr(default, field.name)
        if not dataclasses.is_dataclass(value):
            if value != usual:
                yield here
        elif usual is dataclasses.MISSING:
            yield from _other_than_default(value, None, f"{here}.")
        elif type(usual) is type(value):
            yield from _other_than_default(value, usual, f"{here}.")
        else:
            yield from (k for k, _ in leaves(to_mapping(value), here))


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
