"""The faults of a chaos run: when they come, how they are done, and how it is known that they were.

Each is a function of the run that does the harm and returns what proves it; a fault whose proof is
not found at the end fails the run.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from harness import CHECKPOINT_EVERY, Trouble, workers_of
from worker import ASKED, DONE, UNTIL

from xtdist.files import write_atomic

Proof = Callable[[], bool]
APART = (2 * CHECKPOINT_EVERY, 4 * CHECKPOINT_EVERY)


def worker_killed(run: Trouble) -> Proof:
    before = _count(run, "worker killed")
    pids = workers_of(run.world.cluster)
    os.kill(pids[len(run.kinds()) % len(pids)], signal.SIGKILL)
    run.wait(lambda: _count(run, "worker killed") > before, what="the end of a killed worker")
    return lambda: _count(run, "worker killed") > before


def worker_stopped(run: Trouble) -> Proof:
    """It hangs, and its watchdog's peers have to notice."""
    before = _count(run, "hang")
    os.kill(workers_of(run.world.cluster)[0], signal.SIGSTOP)
    run.wait(lambda: _count(run, "hang") > before, what="the end of a stopped worker")
    return lambda: _count(run, "hang") > before


def driver_killed(run: Trouble) -> Proof:
    driver = run.driver
    assert driver is not None
    run.kill()
    run.start()
    return lambda: driver.returncode == -signal.SIGKILL


def checkpoint_damaged(run: Trouble) -> Proof:
    """The newest checkpoint has a flipped bit when the run is started again."""
    run.kill()
    newest, store = run.commits()[-1], run.world.store.files()
    path = f"{newest}/weights/model.safetensors"
    with store.open_input_stream(path) as file:
        raw = bytearray(file.read())
    raw[len(raw) // 2] ^= 1
    with store.open_output_stream(path) as file:
        file.write(bytes(raw))
    run.start()
    name = newest.rpartition("/")[2]
    run.wait(lambda: newest not in run.commits(), what=f"setting {name} aside")
    return lambda: newest not in run.commits()


def store_out(run: Trouble) -> Proof:
    """The object store answers 503 while at least one checkpoint is due."""
    store, before, step = run.world.store, run.world.store.refused, run.step()
    store.out = True
    try:
        went_on = lambda: run.step() >= step + 3 * CHECKPOINT_EVERY  # noqa: E731
        run.wait(lambda: went_on() and store.refused > before, what="steps without the store")
    finally:
        store.out = False
    refused = store.refused - before
    return lambda: refused > 0


def tracker_out(run: Trouble) -> Proof:
    tracker, step = run.world.tracker, run.step()
    tracker.stop()
    gone = not tracker.answers()
    run.wait(lambda: run.step() >= step + 3 * CHECKPOINT_EVERY, what="steps without the tracker")
    tracker.start()
    return lambda: gone


def nan_loss(run: Trouble) -> Proof:
    """Healed by going back; ``interventions.jsonl`` says so."""
    noted, done = run.folder / "interventions.jsonl", run.folder / "chaos" / DONE
    before = len(noted.read_text().splitlines()) if noted.exists() else 0
    done.unlink(missing_ok=True)
    (run.folder / "chaos" / ASKED).touch()
    run.wait(lambda: done.exists() and noted.exists(), what="a nan")
    return lambda: len(noted.read_text().splitlines()) > before


FAULTS: dict[str, Callable[[Trouble], Proof]] = {
    f.__name__: f
    for f in (
        worker_killed,
        driver_killed,
        checkpoint_damaged,
        store_out,
        tracker_out,
        nan_loss,
        worker_stopped,
    )
}


@dataclass(frozen=True)
class Planned:
    """A fault, and the step after which it comes."""

    kind: str
    step: int


def schedule(seed: int, kinds: list[str]) -> list[Planned]:
    """``kinds`` in an order and at steps that follow from ``seed``."""
    rng = np.random.default_rng(seed)
    order = [kinds[i] for i in rng.permutation(len(kinds))]
    steps = np.cumsum(rng.integers(*APART, size=len(kinds)))
    return [Planned(kind, int(step)) for kind, step in zip(order, steps, strict=True)]


def steps_for(plan: list[Planned]) -> int:
    """Steps of a run that has time for ``plan`` and to recover from its last fault."""
    return plan[-1].step + 2 * APART[1] * (1 + len(plan))


def play(run: Trouble, plan: list[Planned]) -> list[str]:
    """Do the faults of ``plan`` to a run until it is done; those that did not happen."""
    proofs: list[tuple[Planned, Proof]] = []
    until = run.folder / "chaos" / UNTIL
    until.parent.mkdir(parents=True)
    if plan:
        write_atomic(until, str(plan[0].step + APART[1]))
    run.start()
    for fault in plan:
        before = run.step()
        # A run that is not on its feet yet is another one than the fault is meant for.
        run.wait(lambda f=fault: run.goes_on() and run.step() >= f.step, what=f"step {fault.step}")  # type: ignore[misc]
        write_atomic(until, str(max(run.step(), fault.step) + 2 * APART[1]))
        began = time.monotonic()
        proofs.append((fault, FAULTS[fault.kind](run)))
        write_atomic(until, str(run.step() + 2 * APART[1]))
        run.mark()
        print(f"{fault.kind} at step {run.step()} (planned {fault.step}, last {before}): "
              f"{time.monotonic() - began:.1f} s", flush=True)  # fmt: skip
    until.unlink(missing_ok=True)
    code = run.finish()
    assert code == 0, f"the run ended with {code}:\n{run.log}"
    return [fault.kind for fault, proof in proofs if not proof()]


def _count(run: Trouble, kind: str) -> int:
    return run.kinds().count(kind)
