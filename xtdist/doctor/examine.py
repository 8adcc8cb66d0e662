"""The whole examination: this machine, and the cluster if there is one."""

from __future__ import annotations

import os
import secrets

from xtdist.config import ResourceError
from xtdist.connect import ADDRESS, connect, disconnect
from xtdist.doctor.cluster import examine_cluster
from xtdist.doctor.collective import judge_reduce, reduce_here
from xtdist.doctor.finding import Finding, red
from xtdist.doctor.probe import Probe, judge_node
from xtdist.doctor.storage import remove_mark
from xtdist.doctor.target import Target


def examine(target: Target, *, address: str | None) -> list[Finding]:
    """``address``: of a cluster; None: RAY_ADDRESS, else only this machine. Nothing is started."""
    where = address or os.environ.get(ADDRESS)
    if where is None:
        return examine_here(target)
    try:
        connect(where)
    except ResourceError as e:
        fix = f"ray status --address {where}; unset {ADDRESS} to look at this machine alone"
        return [red("cluster", str(e).partition(";")[0], fix), *examine_here(target)]
    try:
        return examine_cluster(target)
    finally:
        disconnect()


def examine_here(target: Target) -> list[Finding]:
    """This machine alone."""
    mark = secrets.token_hex(8)
    facts = Probe().facts(target, mark, write_run=True)
    for fact in facts.places:
        if fact.place.write:
            remove_mark(fact.at, mark)
    found = judge_node(facts, gpus=int(target.gpus), local=True)
    if target.workers > facts.machine.cpus and not target.gpus:
        what = f"{target.workers} workers wanted; this machine has {facts.machine.cpus:g} CPUs"
        found.append(red("room", what, f"workers.count={max(int(facts.machine.cpus), 1)}"))
    gpus = facts.gpus.torch_sees or 0
    if gpus > 1:
        outcomes = reduce_here(gpus, gpus=True)
        found.append(judge_reduce("all-reduce between GPUs (nccl)", outcomes))
    else:
        found.append(judge_reduce("all-reduce (gloo)", reduce_here(2, gpus=False)))
    return found
