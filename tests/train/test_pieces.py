"""Slices of parameters, however they were cut, make up the parameters again."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from xtdist.config import CheckpointError
from xtdist.train.state.pieces import Piece, gap
from xtdist.train.state.shards import Held, Shards, shard_name, write_shard

SHAPES = {"a.weight": (3, 5), "a.bias": (7,), "b|c": (1,), "scale": (), "d": (2, 2, 2)}


def in_order(world: int) -> list[list[Piece]]:
    """As stages 1 and 2 cut: one parameter after the other, in equal parts of the whole."""
    total = sum(math.prod(s) for s in SHAPES.values())
    size, ranks = -(-total // world), []
    for rank in range(world):
        pieces, begin = [], 0
        for name, shape in SHAPES.items():
            low = max(begin, rank * size)
            high = min(begin + math.prod(shape), (rank + 1) * size)
            if low < high:
                pieces.append(Piece(name, shape, low - begin, low - rank * size, high - low))
            begin += math.prod(shape)
        ranks.append(pieces)
    return ranks


def each_alone(world: int) -> list[list[Piece]]:
    """As stage 3 cuts: every parameter for itself, the last parts padded."""
    ranks = []
    for rank in range(world):
        pieces, at = [], 0
        for name, shape in SHAPES.items():
            length = -(-math.prod(shape) // world)
            start = min(rank * length, math.prod(shape))
            pieces.append(Piece(name, shape, start, at, min(length, math.prod(shape) - start)))
            at += length
        ranks.append(pieces)
    return ranks


def shared_out(world: int) -> list[list[Piece]]:
    """As what every rank holds is shared out for saving."""
    whole = [Piece(name, shape, 0, 0, math.prod(shape)) for name, shape in SHAPES.items()]
    return [[piece.part(rank, world) for piece in whole] for rank in range(world)]


Cut = tuple[Callable[[int], list[list[Piece]]], int]
CUTS = st.tuples(st.sampled_from([in_order, each_alone, shared_out]), st.integers(1, 9))


def save(folder: Path, ranks: list[list[Piece]], values: dict[str, Tensor]) -> list[Path]:
    paths = []
    for rank, pieces in enumerate(ranks):
        held = [
            Held(p, {"master": values[p.name].reshape(-1)[p.start : p.start + p.numel]}, {})
            for p in pieces
            if p.numel
        ]
        paths.append(folder / shard_name(rank, len(ranks)))
        write_shard(paths[-1], held)
    return paths


SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(before=CUTS, after=CUTS)
def test_what_one_partition_wrote_another_reads(tmp_path: Path, before: Cut, after: Cut) -> None:
    values = {n: torch.randn(s) for n, s in SHAPES.items()}
    paths = save(tmp_path, before[0](before[1]), values)
    with Shards.open(paths) as shards:
        shards.check(SHAPES, tmp_path)
        for pieces in after[0](after[1]):
            for piece in pieces:
                found = torch.full((piece.at + piece.numel,), torch.nan)
                for at, part in shards.read(piece, "master"):
                    found[at : at + part.numel()] = part
                wanted = values[piece.name].reshape(-1)[piece.start : piece.start + piece.numel]
                assert torch.equal(found[piece.at :], wanted)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), max_size=6), st.integers(0, 20))
def test_a_gap_is_where_an_element_is_not_covered_exactly_once(
    spans: list[tuple[int, int]], numel: int
) -> None:
    count = [sum(start <= i < start + length for start, length in spans) for i in range(40)]
    exact = count == [1] * numel + [0] * (40 - numel)
    assert (gap(spans, numel) is None) == exact


def test_a_lost_or_doubled_shard_is_refused(tmp_path: Path) -> None:
    values = {n: torch.randn(s) for n, s in SHAPES.items()}
    paths = save(tmp_path, in_order(3), values)
    for wrong in (paths[:2], [*paths, paths[1]], paths[1:]):
        with pytest.raises(CheckpointError, match="not all shards of one save, but state/rank-0"):
            Shards.open(wrong)


def test_slices_that_overlap_or_leave_a_gap_are_refused_naming_the_parameter(
    tmp_path: Path,
) -> None:
    values = {"a": torch.randn(9)}
    for second, said in ((4, "element 4 is there twice"), (6, "element 5 is missing")):
        cut = [[Piece("a", (9,), 0, 0, 5)], [Piece("a", (9,), second, 0, 9 - second)]]
        with pytest.raises(CheckpointError, match=rf"slices of a \(master\) .*: {said}"):
            Shards.open(save(tmp_path, cut, values))


def test_a_file_that_lies_about_its_slices_is_refused(tmp_path: Path) -> None:
    for metadata in (None, {"pieces": "[]"}, {"pieces": '{"a": {"start": 0, "numel": 9}}'}):
        (path := tmp_path / shard_name(0, 1)).parent.mkdir(exist_ok=True)
        save_file({"a|master": torch.zeros(4)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match="not a shard of a checkpoint"):
            Shards.open([path])


def test_parameters_of_another_model_are_refused_naming_the_first(tmp_path: Path) -> None:
    values = {n: torch.randn(s) for n, s in SHAPES.items()}
    with Shards.open(save(tmp_path, in_order(2), values)) as shards:
        for other, said in (
            ({**SHAPES, "e": (1,)}, "not in the checkpoint, 'e' first"),
            ({k: v for k, v in SHAPES.items() if k != "d"}, "only in the checkpoint, 'd' first"),
            ({**SHAPES, "d": (4, 2)}, "of another shape the checkpoint, 'd' first"),
        ):
            with pytest.raises(CheckpointError, match=said):
                shards.check(other, tmp_path)
