"""Units as tasks of a Ray cluster, one CPU each. Only tasks and receipts pass through Ray, never
text or tokens. Ray may do a task again when a node dies; a unit done twice gives equal files."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from xtdist.config import ResourceError, UserError

RETRIES = 3
_LEAST_IN_FLIGHT = 8


class RayTasks:
    """Runs tasks on the cluster that this process is connected to.

    Raises:
        ResourceError: not connected, or a node that doesn't see the folder ``shared``.
    """

    def __init__(self, shared: Path) -> None:
        import ray

        if not ray.is_initialized():
            raise ResourceError(
                "runner: kind ray needs a Ray cluster and this process is connected to none; call "
                "ray.init() first, or use `xtdist prepare`, which does"
            )
        _probe(shared)

    def run(self, tasks: Sequence[Any], advance: Callable[[int], None]) -> list[Any]:
        import ray

        do = ray.remote(num_cpus=1, max_retries=RETRIES)(_do)
        results: list[Any] = [None] * len(tasks)
        flying: dict[Any, int] = {}
        waiting = iter(enumerate(tasks))
        try:
            while True:
                cpus = int(ray.cluster_resources().get("CPU", 1))
                while len(flying) < max(_LEAST_IN_FLIGHT, 2 * cpus):
                    following = next(waiting, None)
                    if following is None:
                        break
                    flying[do.remote(following[1])] = following[0]
                if not flying:
                    return results
                (ready, *_), _ = ray.wait(list(flying))
                number = flying.pop(ready)
                done_bytes, results[number] = _result(ready, tasks[number].name)
                advance(done_bytes)
        finally:
            for ref in flying:
                ray.cancel(ref, force=True)

    def __enter__(self) -> RayTasks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """The cluster is not ours to end."""


def _do(task: Any) -> tuple[int, Any]:
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done += amount

    result = task(advance)
    return done, result


def _result(ref: Any, name: str) -> tuple[int, Any]:
    """The task's result, or what it raised itself."""
    import ray

    try:
        result: tuple[int, Any] = ray.get(ref)
        return result
    except ray.exceptions.RayTaskError as e:
        if isinstance(e.cause, (UserError, OSError)):
            raise e.cause from None
        raise
    except ray.exceptions.RayError as e:
        raise ResourceError(
            f"runner: {name} could not be done, {RETRIES} retries failed too: "
            f"{str(e).strip().splitlines()[0]}; run again: finished parts are kept"
        ) from None


def _probe(shared: Path) -> None:
    """Have every node with CPUs read a file that this process writes."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    path, word = shared / f"probe-{secrets.token_hex(4)}", secrets.token_hex(8)
    path.write_text(word)
    try:
        sees = ray.remote(num_cpus=0, max_retries=RETRIES)(_sees)
        asked = {
            node["NodeManagerAddress"]: sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(path), word)
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU")
        }
        blind = [address for address, ref in asked.items() if not ray.get(ref)]
    finally:
        path.unlink(missing_ok=True)
    if blind:
        raise ResourceError(
            f"output: {shared.parent} is not on storage that all nodes share (node {blind[0]} "
            "doesn't see what is written there); set output= to a shared folder, or "
            "runner='{kind: local}'"
        )


def _sees(path: str, word: str) -> bool:
    try:
        return Path(path).read_text() == word
    except OSError:
        return False
