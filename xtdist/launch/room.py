"""How many workers the cluster has room for, and waiting for more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from xtdist.track.text import duration
from xtdist.train.spec import WorkersSpec
from xtdist.train.spec.aside import AsideSpec

SETTLE_S = 5.0  # what a cluster may take to notice that processes have ended
SAY_EVERY_S = 60.0
POLL_S = 0.5


class NoRoomError(RuntimeError):
    """The nodes that a run needs did not come in ``workers.wait_minutes``."""


@dataclass(frozen=True)
class Slots:
    """Workers that fit on the nodes of a cluster: on free resources, on all of them."""

    free: int
    total: int
    nodes: int


@dataclass(frozen=True)
class Room:
    """The room for the workers of one run. ``read`` gives (free, all) resources by node; ``aside``:
    a task that must fit beside them."""

    workers: WorkersSpec
    gpus: int
    read: Callable[[], tuple[dict[str, Any], dict[str, Any]]] = field(
        default_factory=lambda: read_cluster
    )
    aside: AsideSpec | None = None

    def slots(self) -> Slots:
        free, total = self.read()
        return Slots(
            free=self._count([free.get(node, {}) for node in total]),
            total=self._count(list(total.values())),
            nodes=len(total),
        )

    def _count(self, nodes: list[dict[str, float]]) -> int:
        """Workers on all nodes, the task being where it takes the place of the fewest."""
        every = sum(self._fit(node) for node in nodes)
        if self.aside is None:
            return every
        need = {"CPU": self.aside.cpus, "GPU": self.aside.gpus}
        left = [{k: node.get(k, 0) - n for k, n in need.items()} for node in nodes]
        places = zip(nodes, left, strict=True)
        costs = [self._fit(a) - self._fit(b) for a, b in places if min(b.values()) > -1e-6]
        return every - min(costs) if costs else 0

    def _fit(self, resources: dict[str, float]) -> int:
        each = {"CPU": self.workers.cpus, "GPU": self.gpus}
        return min(int(resources.get(k, 0) / need + 1e-6) for k, need in each.items() if need)

    def wait(self, *, stop: threading.Event, say: Callable[[str], None]) -> int:
        """Block until the run can start; with how many workers (0: ``stop`` was set).

        All that could fit are waited for a few seconds, the least as long as ``wait_minutes``.

        Raises:
            NoRoomError: there was no room in that time.
        """
        began, said = time.monotonic(), float("-inf")
        while not stop.is_set():
            slots, waited = self.slots(), time.monotonic() - began
            wanted = min(self.workers.count, max(slots.total, self.workers.least))
            if slots.free >= wanted or (waited > SETTLE_S and slots.free >= self.workers.least):
                return min(slots.free, self.workers.count)
            if waited > 60 * self.workers.wait_minutes + SETTLE_S:
                raise NoRoomError(
                    f"no room in {duration(waited)} (workers.wait_minutes): {self.lack(slots)}"
                )
            if waited > SETTLE_S and time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                left = duration(60 * self.workers.wait_minutes + SETTLE_S - waited)
                say(f"waiting {left} at most: {self.lack(slots)}")
            stop.wait(POLL_S)
        return 0

    def lack(self, slots: Slots) -> str:
        """What is missing, in words."""
        least, missing = self.workers.least, self.workers.least - slots.free
        each = f"{self.workers.cpus} CPU" + (f" and {self.gpus} GPU" if self.gpus else "")
        busy = slots.total - slots.free
        if self.aside is not None:
            each += f" beside a task of {self.aside.resources} (loop.aside)"
        return (
            f"{least} workers of {each} are needed and the {slots.nodes} nodes of the cluster have "
            f"room for {slots.free}: room for {missing} more is missing"
            + (f" (other work takes that of {busy})" if busy > 0 else "")
        )


def read_cluster() -> tuple[dict[str, Any], dict[str, Any]]:
    """(free, all) resources of the live nodes of the connected cluster. A node that is about to be
    taken away is live until it has gone, but nothing is started on it any more."""
    from ray._private import state

    leaving = state.state.get_draining_nodes()
    total = {n: r for n, r in state.total_resources_per_node().items() if n not in leaving}
    return state.available_resources_per_node(), total
