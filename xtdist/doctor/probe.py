"""What is read on one machine: here, or by an actor on each node of a cluster."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from xtdist.doctor.collective import Rank, free_port, run_rank
from xtdist.doctor.finding import Finding
from xtdist.doctor.gpus import GpuFacts, judge_gpus, read_gpus
from xtdist.doctor.machine import Machine, judge_machine, read_machine
from xtdist.doctor.storage import PlaceFacts, judge_place, remove_mark, seen_marks, try_place
from xtdist.doctor.surroundings import (
    Surroundings,
    answers,
    judge_proxies,
    judge_surroundings,
    judge_token,
    read_surroundings,
)
from xtdist.doctor.target import Target
from xtdist.doctor.tracking import TrackingFacts, judge_tracking, read_tracking
from xtdist.doctor.versions import Versions, judge_versions, read_versions, wanted_versions
from xtdist.launch.hosts import interface_of


@dataclass(frozen=True)
class NodeFacts:
    """Of one machine. ``user``: a name or token for MLflow is set there."""

    versions: Versions
    machine: Machine
    gpus: GpuFacts
    surroundings: Surroundings
    places: tuple[PlaceFacts, ...]
    tracking: TrackingFacts | None
    user: bool


class Probe:
    """Reads; the time that each part may take is bounded."""

    def facts(self, target: Target, mark: str, *, write_run: bool) -> NodeFacts:
        """``mark``: of the files it writes; ``write_run``: to MLflow too."""
        env = os.environ
        tracking = None
        if target.tracking is not None:
            tracking = read_tracking(target.tracking, env, write=write_run)
        return NodeFacts(
            versions=read_versions(),
            machine=read_machine(env, output=target.output),
            gpus=read_gpus(),
            surroundings=read_surroundings(env),
            places=tuple(try_place(p, mark=mark, cache=target.cache) for p in target.places),
            tracking=tracking,
            user="MLFLOW_TRACKING_USERNAME" in env or "MLFLOW_TRACKING_TOKEN" in env,
        )

    def clock(self) -> float:
        return time.time()

    def seen(self, at: str, marks: tuple[str, ...]) -> tuple[str, ...]:
        return seen_marks(at, marks)

    def remove(self, at: str, mark: str) -> None:
        remove_mark(at, mark)

    def unreachable(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(address for address in addresses if not answers(address))

    def port(self) -> int:
        return free_port()

    def interface(self, address: str) -> str | None:
        return interface_of(address)

    def reduce(self, rank: Rank) -> bool | None:
        return run_rank(rank, os.environ)


def judge_node(facts: NodeFacts, *, gpus: int, local: bool) -> list[Finding]:
    """``gpus``: wanted here. ``local``: of this process; else of a process of Ray's, whose
    variables are Ray's own and whose ports are taken."""
    s = facts.surroundings
    around = judge_surroundings(s, cluster=False) if local else [judge_proxies(s), judge_token(s)]
    tracking = facts.tracking
    return [
        *judge_versions(facts.versions, wanted_versions()),
        *judge_gpus(facts.gpus, wanted=gpus),
        *judge_machine(facts.machine),
        *around,
        *(judge_place(place) for place in facts.places),
        *(judge_tracking(tracking, user=facts.user) if tracking is not None else ()),
    ]
