"""What a weights folder may ask of the machine that reads it.

A manifest says that the files are those that were written, not that whoever wrote them meant well:
a config can ask for more layers or wider ones than any memory holds. So a model is built only when
the headers of the saved tensors, which can't be longer than their file, account for all of it.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from xtdist.config import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
MOST_CONFIG_BYTES = 16 * 2**20
MOST_LAYERS = 1024  # that may share the tensors of fewer
MOST_SIZE = 65_536  # of what no tensor need have: heads, buckets, steps
MOST_LENGTH = 2**24
SLACK_NUMBERS = 2**20
_LENGTHS = frozenset(
    ("max_seq_len", "max_mem_len", "max_distance", "original_max_len", "window", "every")
)


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file.

    Raises:
        CheckpointError: more than ``most`` bytes, no plain file, or it can't be read.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path}: not a plain file")
        if found.st_size > most:
            raise CheckpointError(f"{path}: {found.st_size} bytes; at most {most} are read")
        return path.read_bytes()
    except OSError as e:
        raise CheckpointError(f"{path}: can't be read ({e.strerror})") from None


def saved_shapes(paths: Iterable[Path]) -> Shapes:
    """The shapes of all tensors of safetensors files, from their headers alone.

    Raises:
        CheckpointError: a header that is damaged or does not describe the file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path}: not a plain file")
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError, ValueError, OverflowError) as e:
            raise CheckpointError(f"{path}: no safetensors file, or a damaged one: {e}") from None
    return shapes


def read_config_tree(path: Path, shapes: Shapes) -> Any:
    """The JSON of a ``config.json`` whose numbers the tensors can account for.

    Raises:
        CheckpointError: no JSON of that size, or a number beyond what was saved; it is named.
    """
    try:
        tree = json.loads(read_bounded(path, MOST_CONFIG_BYTES))
        parts = [(key, tree[key]) for key in ("model", "objective") if isinstance(tree, dict)]
        for key, part in parts:
            check_numbers(part, key, shapes)
    except (KeyError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: not weights that this version can read: {e}") from None
    return tree


def check_numbers(tree: Any, where: str, shapes: Shapes) -> None:
    """Raises ValueError for a number in a config, at ``where``, beyond what was saved."""
    widest = max((max(s) for s in shapes.values() if s and min(s) > 0), default=0)
    _check_numbers(tree, where, layers=len(shapes), size=widest)


def _check_numbers(tree: Any, where: str, *, layers: int, size: int) -> None:
    """``where`` is the path to ``tree``; its last key says what a number counts."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            _check_numbers(value, f"{where}.{key[:80]}", layers=layers, size=size)
    elif isinstance(tree, list):
        for value in tree:
            _check_numbers(value, where, layers=layers, size=size)
    elif isinstance(tree, int):
        key = where.rpartition(".")[2]
        most = max(MOST_SIZE, size)
        if key in _LENGTHS:
            most = MOST_LENGTH
        elif key == "depth":
            most = max(MOST_LAYERS, layers)
        if abs(tree) > most:
            raise ValueError(f"{where}: it asks for more than {most}, and no saved tensor has that")


def check_room(build: Callable[[], nn.Module], shapes: Shapes, *, where: Path) -> None:
    """Refuse a model with far more numbers than were saved, before any memory is taken for it. One
    with a few more is left to the comparison tensor by tensor, which names the first that differs.

    Raises:
        CheckpointError: with both counts.
    """
    saved = sum(math.prod(shape) for shape in shapes.values())
    try:
        with torch.device("meta"):
            wanted = sum(p.numel() for p in build().parameters())
    except (RuntimeError, OverflowError, TypeError, ValueError) as e:
        why = str(e).partition("\n")[0]
        raise CheckpointError(f"{where}: no model can be as its config says: {why}") from None
    if wanted > 2 * saved + SLACK_NUMBERS:
        raise CheckpointError(
            f"{where}: its config describes a model of {wanted} numbers, its tensors hold {saved}: "
            "of another model"
        )
