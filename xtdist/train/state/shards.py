"""The file that a rank writes, and all of them read as one.

``state/rank-00003-of-00008.safetensors`` holds tensors ``<parameter>|<key>``, each a slice of the
flattened parameter; ``key`` is ``master`` or a state of the optimizer (``exp_avg`` …). Which slices
they are stands in the header, as JSON under ``pieces``. No file says how many ranks may read it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xtdist.config import CheckpointError
from xtdist.train.state.pieces import Piece, gap

FOLDER = "state"
MASTER = "master"
EXTRA = "extra."  # before the keys of what is not the optimizer's


def shard_name(rank: int, world: int) -> str:
    return f"{FOLDER}/rank-{rank:05d}-of-{world:05d}.safetensors"


@dataclass(frozen=True)
class Held:
    """One piece with its values in host memory: ``tensors`` of its length, ``scalars`` as the
    optimizer counts them (``step``)."""

    piece: Piece
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, float]


def write_shard(path: Path, held: list[Held]) -> None:
    """Write one rank's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{h.piece.name}|{key}": t for h in held for key, t in h.tensors.items()}
    pieces = {
        h.piece.name: {
            "shape": h.piece.shape,
            "start": h.piece.start,
            "numel": h.piece.numel,
            "scalars": dict(h.scalars),
        }
        for h in held
    }
    save_file(tensors, path, metadata={"pieces": json.dumps(pieces)})


@dataclass(frozen=True)
class _Source:
    file: Any
    start: int
    numel: int


@dataclass
class Shards:
    """All shards of a checkpoint. Only headers are read at first; ``read`` maps the rest."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    scalars: dict[str, dict[str, float]] = field(default_factory=dict)
    _sources: dict[tuple[str, str], list[_Source]] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def open(cls, paths: list[Path]) -> Shards:
        """Use it as a context manager, which closes the files.

        Raises:
            CheckpointError: a file is not a shard, or the slices do not fit together.
        """
        shards = cls()
        names = sorted(f"{FOLDER}/{path.name}" for path in paths)
        if names != [shard_name(rank, len(paths)) for rank in range(len(paths))]:
            raise CheckpointError(
                f"{paths[0].parent}: not all shards of one save, but {', '.join(names)}; use "
                "another checkpoint"
            )
        for path in paths:
            try:
                shards._add(shards._stack.enter_context(safe_open(path, framework="pt")))
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
                raise CheckpointError(
                    f"{path}: not a shard of a checkpoint, nothing was loaded ({e}); use another "
                    "checkpoint"
                ) from None
        for (name, key), sources in shards._sources.items():
            wrong = gap(((s.start, s.numel) for s in sources), math.prod(shards.shapes[name]))
            if wrong:
                raise CheckpointError(
                    f"{paths[0].parent}: the slices of {name} ({key}) do not make it up: {wrong}; "
                    "use another checkpoint"
                )
        return shards

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _add(self, file: Any) -> None:
        pieces = json.loads(file.metadata()["pieces"])
        for tensor in file.keys():  # noqa: SIM118 - not a mapping
            name, key = tensor.rsplit("|", 1)
            start, numel = int(pieces[name]["start"]), int(pieces[name]["numel"])
            if file.get_slice(tensor).get_shape() != [numel]:
                raise ValueError(f"{tensor} has another length than its header says")
            self._sources.setdefault((name, key), []).append(_Source(file, start, numel))
        for name, piece in pieces.items():
            shape = tuple(int(n) for n in piece["shape"])
            if self.shapes.setdefault(name, shape) != shape:
                raise ValueError(f"{name} has another shape than in the other files")
            scalars = self.scalars.setdefault(name, {})
            for key, value in piece["scalars"].items():
                scalars[key] = max(float(value), scalars.get(key, float(value)))

    def check(self, shapes: Mapping[str, tuple[int, ...]], where: Path) -> None:
        """Compare with the trained parameters of the model.

        Raises:
            CheckpointError: some are missing, unknown or of another shape; the first is named.
        """
        ours = {n: s for n, s in shapes.items() if math.prod(s)}
        there = {n for n, key in self._sources if key == MASTER}
        missing, unknown = sorted(set(ours) - there), sorted(there - set(ours))
        wrong = sorted(n for n in set(ours) & there if ours[n] != self.shapes[n])
        for what, names in (("not in", missing), ("only in", unknown), ("of another shape", wrong)):
            if names:
                raise CheckpointError(
                    f"{where}: {len(names)} trained parameters are {what} the checkpoint, "
                    f"{names[0]!r} first: it is of another model"
                )

    def keys(self, name: str) -> set[str]:
        """What is held of a parameter."""
        return {key for n, key in self._sources if n == name}

    def read(self, piece: Piece, key: str) -> Iterator[tuple[int, Tensor]]:
        """The values of ``piece``: parts, each with its place in the flat tensor."""
        end = piece.start + piece.numel
        for source in self._sources.get((piece.name, key), []):
            low, high = max(source.start, piece.start), min(source.start + source.numel, end)
            if low < high:
                values = source.file.get_slice(f"{piece.name}|{key}")
                yield (
                    piece.at + low - piece.start,
                    values[low - source.start : high - source.start],
                )
