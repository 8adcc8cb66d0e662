"""Which rank makes which matrix orthogonal, and what has to be sent for that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch.distributed as dist
from torch import Tensor

from xtdist.optim.groups import Matrices


class PieceLike(Protocol):
    """A run of a parameter's elements: from ``start`` of the flattened parameter ``name``, at
    ``at`` of a flat tensor, ``numel`` of them."""

    @property
    def name(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def at(self) -> int: ...
    @property
    def numel(self) -> int: ...


class FlatLike(Protocol):
    """A tensor that the optimizer steps, and what is in it on this rank."""

    @property
    def pieces(self) -> Sequence[PieceLike]: ...
    @property
    def master(self) -> Tensor: ...


class Unit(NamedTuple):
    """Matrices side by side in ``rows`` x ``cols`` elements of a parameter, one after the other
    from ``start`` on; ``widths`` are their columns. ``outputs_first``: rows are outputs."""

    start: int
    rows: int
    cols: int
    widths: tuple[int, ...]
    outputs_first: bool


class Run(NamedTuple):
    """``numel`` elements of a unit from its element ``offset`` on, at ``at`` of a buffer."""

    at: int
    offset: int
    numel: int


class Job(NamedTuple):
    """A unit that this rank computes, from parts in its own flat and in what it receives."""

    unit: Unit
    local: list[Run]
    remote: list[Run]


@dataclass(frozen=True)
class Plan:
    """What this rank does for one flat tensor. ``send``: (at, numel) of what goes to others, by
    rank; ``cut``: whether any rank sends anything; ``matrices``: in the flat, over all ranks."""

    jobs: list[Job]
    send: list[tuple[int, int]]
    send_sizes: tuple[int, ...]
    receive_sizes: tuple[int, ...]
    cut: bool
    matrices: int

    @classmethod
    def whole(cls, units: Sequence[Unit]) -> Plan:
        """Of a parameter that is here in one piece."""
        jobs = [Job(u, [Run(u.start, 0, u.rows * u.cols)], []) for u in units]
        return cls(jobs, [], (0,), (0,), cut=False, matrices=sum(len(u.widths) for u in units))


def units_of(matrices: Matrices) -> tuple[Unit, ...]:
    """The matrices of a parameter, grouped so that each unit is one run of its elements."""
    shape = tuple(getattr(matrices.parameter, "ds_shape", matrices.parameter.shape))
    *lead, rows, cols = shape
    axis, sizes = matrices.axis, matrices.sizes
    units = []
    for i in range(math.prod(lead)):
        start = i * rows * cols
        if axis == len(shape) - 1:
            units.append(Unit(start, rows, cols, sizes, outputs_first=False))
            continue
        assert axis == len(shape) - 2, "matrices lie side by side along one of the last two axes"
        for size in sizes:
            units.append(Unit(start, size, cols, (cols,), outputs_first=True))
            start += size * cols
    return tuple(units)


def plans_of(flats: Sequence[FlatLike], units: Mapping[str, Sequence[Unit]]) -> dict[int, Plan]:
    """A plan for each of ``flats`` that holds matrices, by the id of its ``master``. Collective:
    all ranks give the same flats in the same order."""
    mine = [
        [(p.name, p.start, p.at, p.numel) for p in flat.pieces if p.name in units] for flat in flats
    ]
    ranks = [mine]
    if dist.is_initialized():
        ranks = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(ranks, mine)
    me = dist.get_rank() if dist.is_initialized() else 0
    plans = {}
    for i, flat in enumerate(flats):
        held = [pieces[i] for pieces in ranks]
        if any(held):
            plans[id(flat.master)] = _plan(held, units, me)
    return plans


def _plan(
    held: list[list[tuple[str, int, int, int]]], units: Mapping[str, Sequence[Unit]], me: int
) -> Plan:
    """``held``: (name, start, at, numel) of the pieces on each rank."""
    world = len(held)
    names = [name for name in units if any(p[0] == name for pieces in held for p in pieces)]
    parts = [
        (unit, [_runs(unit, name, pieces) for pieces in held])
        for name in names
        for unit in units[name]
    ]
    owners = _owners(parts, world)
    send: list[list[tuple[int, int]]] = [[] for _ in range(world)]
    receive = [0] * world
    traffic: list[list[tuple[int, int, int]]] = [[] for _ in range(world)]  # job, offset, numel
    jobs: list[Job] = []
    for (unit, runs), owner in zip(parts, owners, strict=True):
        if owner in (me, None):
            for rank, found in enumerate(runs if owner == me else []):
                if rank != me:
                    traffic[rank] += [(len(jobs), r.offset, r.numel) for r in found]
                    receive[rank] += sum(r.numel for r in found)
            jobs.append(Job(unit, runs[me], []))
        else:
            send[owner] += [(r.at, r.numel) for r in runs[me]]
    at = 0
    for rank in range(world):
        for job, offset, numel in traffic[rank]:
            jobs[job].remote.append(Run(at, offset, numel))
            at += numel
    cut = any(
        owner is not None and any(r and rank != owner for rank, r in enumerate(runs))
        for (_, runs), owner in zip(parts, owners, strict=True)
    )
    return Plan(
        jobs=jobs,
        send=[run for runs in send for run in runs],
        send_sizes=tuple(sum(n for _, n in runs) for runs in send),
        receive_sizes=tuple(receive),
        cut=cut,
        matrices=sum(len(unit.widths) for unit, _ in parts),
    )


def _runs(unit: Unit, name: str, pieces: list[tuple[str, int, int, int]]) -> list[Run]:
    """What of ``unit`` is in ``pieces`` of one rank."""
    found = []
    for piece, start, at, numel in pieces:
        low = max(unit.start, start)
        high = min(unit.start + unit.rows * unit.cols, start + numel)
        if piece == name and low < high:
            found.append(Run(at + low - start, low - unit.start, high - low))
    return found


def _owners(parts: list[tuple[Unit, list[list[Run]]]], world: int) -> list[int | None]:
    """Who computes each unit: who holds all of it; None: each for itself, where all do; else, so
    that all have about the same work, one of those that hold some of it."""
    load = [0.0] * world
    owners: list[int | None] = [None] * len(parts)
    rest = []
    for i, (unit, runs) in enumerate(parts):
        size = unit.rows * unit.cols
        sums = [sum(r.numel for r in found) for found in runs]
        full = [rank for rank in range(world) if sums[rank] == size]
        if len(full) == world:
            continue
        if full:
            owners[i] = full[0]
            load[full[0]] += _work(unit)
        elif sum(sums) == size:
            rest.append(i)
        else:
            raise RuntimeError(f"{size - sum(sums)} elements of a matrix are on no rank")
    for i in sorted(rest, key=lambda i: -_work(parts[i][0])):
        holders = [rank for rank in range(world) if parts[i][1][rank]]
        owner = min(holders, key=lambda rank: load[rank])
        owners[i] = owner
        load[owner] += _work(parts[i][0])
    return owners


def _work(unit: Unit) -> float:
    """Multiplications of one iteration, up to a factor."""
    return sum(unit.rows * w * min(unit.rows, w) for w in unit.widths)
