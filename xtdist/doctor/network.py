"""Judgements of what lies between the nodes: clocks, ports, room for a run."""

from __future__ import annotations

from collections.abc import Mapping

from xtdist.doctor.finding import Finding, amber, green, red
from xtdist.doctor.target import Target

MOST_SKEW_S = 1.0
WORST_SKEW_S = 60.0  # tokens and signatures of object stores expire


def judge_clocks(clocks: Mapping[str, tuple[float, float]]) -> Finding:
    """By node: seconds ahead of this one, and how exactly that is known."""
    off = {n: s for n, (s, exact) in clocks.items() if abs(s) - exact > MOST_SKEW_S}
    if not off:
        largest = max((abs(s) for s, _ in clocks.values()), default=0.0)
        return green("clock", f"{len(clocks)} nodes within {largest:.2f} s")
    node, skew = max(off.items(), key=lambda item: abs(item[1]))
    what = f"{node} is {skew:+.1f} s beside this machine"
    fix = "on that node: chronyc makestep (or: timedatectl set-ntp true)"
    return (red if abs(skew) > WORST_SKEW_S else amber)("clock", what, fix)


def judge_reach(unreachable: Mapping[str, tuple[str, ...]]) -> Finding:
    """By node, the ports of others' Ray that it can't connect to."""
    cut = {node: ports for node, ports in unreachable.items() if ports}
    if not cut:
        return green("ports", f"Ray's, between {len(unreachable)} nodes")
    node, ports = next(iter(cut.items()))
    host, _, port = ports[0].rpartition(":")
    what = f"{len(cut)} nodes can't reach others; {node} can't reach {', '.join(ports[:4])}"
    fix = "open all TCP ports between the nodes (security group, NetworkPolicy)"
    return red("ports", what, f"{fix}: nc -vz {host} {port}")


def judge_room(target: Target, resources: Mapping[str, float]) -> list[Finding]:
    """Whether the cluster has what a run's workers ask for."""
    if not target.workers:
        return []
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    what = f"{target.workers} workers wanted; the cluster has {cpus:g} CPUs and {gpus:g} GPUs"
    if target.gpus and gpus < target.workers:
        return [red("room", what, f"add GPU nodes, or: workers.count={max(int(gpus), 1)}")]
    if cpus < target.workers * target.cpus:
        fit = max(int(cpus // target.cpus), 1)
        return [red("room", what, f"add nodes, or: workers.count={fit}")]
    return [green("room", what)]
