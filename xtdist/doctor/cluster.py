"""Every node of a running cluster, side by side. Nothing waits for a node longer than it may."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from xtdist.doctor.collective import Rank, judge_reduce
from xtdist.doctor.doors import judge_doors, read_doors
from xtdist.doctor.finding import Finding, amber, green, on_node, red
from xtdist.doctor.network import judge_clocks, judge_reach, judge_room
from xtdist.doctor.probe import NodeFacts, Probe, judge_node
from xtdist.doctor.storage import judge_shared
from xtdist.doctor.target import Target
from xtdist.doctor.versions import judge_same

FACTS_S = 180.0
SHORT_S = 40.0
REDUCE_S = 120.0
CLOCK_TRIES = 5


class Nodes:
    """An actor on each live node, by the node's name; ``close`` ends them."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        everywhere = ray.nodes()
        self.alive = {_name(n, everywhere): n for n in everywhere if n["Alive"]}
        self.dead = sum(not n["Alive"] for n in everywhere)
        make = ray.remote(num_cpus=0, max_concurrency=4)(Probe)
        self._actors: dict[str, Any] = {
            name: make.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)
            ).remote()
            for name, n in self.alive.items()
        }

    def ask(self, call: Callable[[str, Any], Any], *, seconds: float) -> dict[str, Any]:
        """What each actor that answers in time gives; of those that don't, an exception."""
        import ray

        refs = {name: call(name, actor) for name, actor in self._actors.items()}
        ray.wait(list(refs.values()), num_returns=len(refs), timeout=seconds)
        found: dict[str, Any] = {}
        for name, ref in refs.items():
            try:
                found[name] = ray.get(ref, timeout=0.1)
            except Exception as e:  # of Ray, or what the call has raised there
                found[name] = e
        return found

    def ask_one(self, name: str, call: Callable[[Any], Any], *, seconds: float) -> Any:
        """The answer of one of them, or an exception."""
        import ray

        try:
            return ray.get(call(self.actor(name)), timeout=seconds)
        except Exception as e:
            return e

    def actor(self, name: str) -> Any:
        return self._actors[name]

    def drop(self, name: str) -> None:
        """Ask it no more."""
        self._kill(self._actors.pop(name))
        self.alive.pop(name)

    def close(self) -> None:
        for actor in self._actors.values():
            self._kill(actor)

    def _kill(self, actor: Any) -> None:
        import ray

        ray.kill(actor)


def _name(node: dict[str, Any], everywhere: list[dict[str, Any]]) -> str:
    """Its address; several nodes of one machine have a piece of their id behind it."""
    address = str(node["NodeManagerAddress"])
    alone = sum(n["NodeManagerAddress"] == address for n in everywhere if n["Alive"]) == 1
    return address if alone else f"{address}/{node['NodeID'][:6]}"


def examine_cluster(target: Target) -> list[Finding]:
    """Of the cluster that this process is connected to."""
    import ray

    nodes = Nodes()
    try:
        facts, found = _facts(nodes, target)
        if nodes.dead:
            what = f"{len(nodes.alive)} nodes; {nodes.dead} others were lost since the start"
            found.append(amber("nodes", what, "ray list nodes --filter state=DEAD"))
        found += judge_same({name: f.versions for name, f in facts.items()})
        found += judge_room(target, ray.cluster_resources())
        found.append(judge_clocks(_clocks(nodes)))
        if len(nodes.alive) > 1:
            found += [judge_reach(_unreachable(nodes)), _gloo(nodes)]
        found += _nccl(nodes, facts)
        found += judge_doors(read_doors(ray.get_runtime_context().gcs_address, _dashboard()))
        return found
    finally:
        nodes.close()


def _dashboard() -> str | None:
    from ray._private.worker import get_dashboard_url

    url = get_dashboard_url()
    return str(url) if url else None


def _facts(nodes: Nodes, target: Target) -> tuple[dict[str, NodeFacts], list[Finding]]:
    """Of the nodes that answer, and what is to be said of all."""
    marks = {name: secrets.token_hex(8) for name in nodes.alive}
    first = next(iter(marks), None)
    answers = nodes.ask(
        lambda n, a: a.facts.remote(target, marks[n], write_run=n == first), seconds=FACTS_S
    )
    facts: dict[str, NodeFacts] = {}
    found: list[Finding] = []
    for name, answer in answers.items():
        if isinstance(answer, NodeFacts):
            facts[name] = answer
            found += on_node(judge_node(answer, gpus=0, local=False), name)
        else:
            found += on_node([_silent(answer)], name)
            nodes.drop(name)
    if len(facts) > 1:
        found += _shared(nodes, facts, marks)
    for fact in next(iter(facts.values())).places if facts else ():
        if fact.place.write:
            nodes.ask(partial(_remove, at=fact.at, marks=marks), seconds=SHORT_S)
    return facts, found


def _remove(node: str, actor: Any, *, at: str, marks: Mapping[str, str]) -> Any:
    return actor.remove.remote(at, marks[node])


def _seen(node: str, actor: Any, *, at: Mapping[str, str], marks: tuple[str, ...]) -> Any:
    return actor.seen.remote(at[node], marks)


def _interface(actor: Any, *, address: str) -> Any:
    return actor.interface.remote(address)


def _silent(error: Exception) -> Finding:
    from ray.exceptions import GetTimeoutError

    if isinstance(error, GetTimeoutError):
        fix = "ray drain-node --node-id …, then look at that machine's load, disks and driver"
        return red("node", f"no answer in {FACTS_S:g} s", fix)
    last = str(error).strip().splitlines()[-1][:200]
    fix = "have xtdist on that node: pip install -c constraints.txt . (or one image for all)"
    return red("node", f"the doctor can't run here: {type(error).__name__}: {last}", fix)


def _shared(
    nodes: Nodes, facts: Mapping[str, NodeFacts], marks: Mapping[str, str]
) -> list[Finding]:
    """Whether the nodes see each other's files, of the places that all of them could write."""
    found = []
    every = {name: marks[name] for name in facts}
    names = {mark: name for name, mark in every.items()}
    for i, fact in enumerate(next(iter(facts.values())).places):
        if not fact.place.write or any(f.places[i].error for f in facts.values()):
            continue
        at = {name: f.places[i].at for name, f in facts.items()}
        said = nodes.ask(partial(_seen, at=at, marks=tuple(every.values())), seconds=SHORT_S)
        seen = {
            node: tuple(names[m] for m in marks_seen) if isinstance(marks_seen, tuple) else ()
            for node, marks_seen in said.items()
        }
        found.append(judge_shared(fact.place.key, fact.place.path, seen))
    return found


def _clocks(nodes: Nodes) -> dict[str, tuple[float, float]]:
    """By node: seconds that its clock is ahead of ours, and how exactly that is known."""
    best: dict[str, tuple[float, float]] = {}
    for name in nodes.alive:
        for _ in range(CLOCK_TRIES):
            began = time.time()
            said = nodes.ask_one(name, lambda a: a.clock.remote(), seconds=5.0)
            if not isinstance(said, float):
                break
            ended = time.time()
            measured = (said - (began + ended) / 2, (ended - began) / 2)
            best[name] = min(best.get(name, measured), measured, key=lambda m: m[1])
    return best


def _unreachable(nodes: Nodes) -> dict[str, tuple[str, ...]]:
    """By node, the ports of other nodes' Ray that it can't reach."""
    ports = {
        name: [
            f"{n['NodeManagerAddress']}:{n[key]}"
            for key in ("NodeManagerPort", "ObjectManagerPort")
        ]
        for name, n in nodes.alive.items()
    }
    said = nodes.ask(
        lambda name, a: a.unreachable.remote(
            tuple(p for other, each in ports.items() if other != name for p in each)
        ),
        seconds=SHORT_S,
    )
    return {n: missing for n, missing in said.items() if isinstance(missing, tuple)}


def _gloo(nodes: Nodes) -> Finding:
    outcomes = _reduce(nodes, dict.fromkeys(nodes.alive, (None,)))
    return judge_reduce("all-reduce between nodes (gloo)", outcomes)


def _nccl(nodes: Nodes, facts: Mapping[str, NodeFacts]) -> list[Finding]:
    gpus = {n: tuple(range(f.gpus.torch_sees or 0)) for n, f in facts.items() if f.gpus.gpus}
    if sum(map(len, gpus.values())) < 2:
        return [green("all-reduce between GPUs (nccl)", "fewer than two GPUs")]
    return [judge_reduce("all-reduce between GPUs (nccl)", _reduce(nodes, gpus))]


def _reduce(nodes: Nodes, devices: Mapping[str, tuple[int | None, ...]]) -> dict[str, bool | None]:
    """By ``node`` and GPU, whether the sum was right."""
    import ray

    places = [(name, gpu) for name, each in devices.items() for gpu in each]
    first = places[0][0]
    address = str(nodes.alive[first]["NodeManagerAddress"])
    port = nodes.ask_one(first, lambda a: a.port.remote(), seconds=SHORT_S)
    refs = {}
    for i, (name, gpu) in enumerate(places):
        own = str(nodes.alive[name]["NodeManagerAddress"])
        interface = nodes.ask_one(name, partial(_interface, address=own), seconds=SHORT_S)
        known = interface if isinstance(interface, str) else None
        rank = Rank(i, len(places), address, int(port), gpu, known)
        refs[name if gpu is None else f"{name} GPU {gpu}"] = nodes.actor(name).reduce.remote(rank)
    done, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=REDUCE_S)
    return {name: _outcome(ref) if ref in done else None for name, ref in refs.items()}


def _outcome(ref: Any) -> bool | None:
    import ray

    try:
        said: bool | None = ray.get(ref, timeout=1)
        return said
    except Exception:
        return None
