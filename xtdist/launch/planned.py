"""``plan.json`` in a run's folder: what it was expected to need, to be held against what it did."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil  # type: ignore[import-untyped]

from xtdist.config import UserError
from xtdist.files import write_atomic
from xtdist.launch.datasets import known_data
from xtdist.launch.preflight import Plan
from xtdist.plan import Data, Device, known_device, make_plan

FILE = "plan.json"
_BY_RAY = {"a100": "a100-40", "a100-40g": "a100-40", "a100-80g": "a100-80", "a10g": "a10"}


@contextmanager
def planned(plan: Plan, resources: dict[str, Any]) -> Iterator[None]:
    """Write it while the workers start, which takes longer. ``resources``: of the cluster. Left out
    where the kind of GPU is not known, or the model can't be traced."""
    thread = threading.Thread(target=_write, args=(plan, resources), name="plan", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def device_of(plan: Plan, resources: dict[str, Any]) -> Device | None:
    """What Ray says of the cluster's GPUs; without them, a worker's share of this machine."""
    if not plan.gpus_per_worker:
        share = psutil.virtual_memory().total // plan.spec.workers.count
        return Device("share of the driver's machine", share, cuda=False)
    marks = [key.partition(":")[2] for key in resources if key.startswith("accelerator_type:")]
    if len(marks) != 1:
        return None
    name = marks[0].lower()
    try:
        return known_device(_BY_RAY.get(name, name))
    except UserError:
        return None


def _write(plan: Plan, resources: dict[str, Any]) -> None:
    device = device_of(plan, resources)
    if device is None:
        return
    tokens = sum(c.tokens for c in plan.corpora)
    documents = sum(c.documents for c in plan.corpora)
    try:
        found = make_plan(
            plan.spec,
            known_data(plan.spec).tokenizer,
            device,
            data=Data(tokens, documents),
            alone=True,
        )
        write_atomic(plan.folder / FILE, json.dumps(found.tree(), indent=2))
    except Exception as e:  # whatever it is: a run does not fail for a forecast
        print(f"{FILE}: left out ({type(e).__name__}: {str(e)[:100]})", flush=True)
