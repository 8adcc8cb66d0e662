"""Packing plans on disk: a side file of the cache, made once per dataset, split and ``seq_len``.

Its name is the digest of what the plan follows from, its schema holds the digest of its content: a
file that is damaged, or of another plan, is made anew. One process of a host makes a plan, under a
lock that dies with it; the others wait and map what it wrote.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from xtdist.config import ResourceError
from xtdist.data.dataset import TokenDataset
from xtdist.data.packing import ALGORITHM, Plan, plan_documents
from xtdist.data.storage.config import CacheConfig
from xtdist.files import replacing

PLANS = "plans"


def load_plan(dataset: TokenDataset, seq_len: int, *, cache: CacheConfig) -> Plan:
    """The packing plan of a split: mapped from the cache, made first if it isn't there.

    Raises:
        ResourceError: it can't be written.
        DataError: a shard is missing or damaged (its document lengths are needed).
    """
    key = {
        "dataset_id": dataset.dataset_id,
        "split": dataset.split,
        "seq_len": str(seq_len),
        "algorithm": str(ALGORITHM),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = Path(cache.folder).expanduser() / PLANS
    path = folder / f"packing-{digest[:32]}.arrow"
    plan = read_plan(path, key)
    if plan is not None:
        return plan
    try:
        with _lock(path):
            plan = read_plan(path, key)
            if plan is None:
                write_plan(path, plan_documents(dataset, seq_len), key)
                plan = read_plan(path, key)
    except OSError as e:
        raise ResourceError(
            f"{folder}: can't keep the packing plan there ({e}); make room, or give another folder "
            "as data.cache.folder"
        ) from None
    if plan is None:
        raise ResourceError(
            f"{path}: reads back other than it was written; check the disk, or give another folder "
            "as data.cache.folder"
        )
    return plan


def read_plan(path: Path, key: dict[str, str]) -> Plan | None:
    """The plan in a file, zero-copy; None if there is none, or not the one of ``key``, or any of
    its numbers changed."""
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        said = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        (column,) = table.column("pieces").chunks
        column.validate(full=False)
        plan = Plan(
            starts=column.values.field("start").to_numpy(),
            lengths=column.values.field("length").to_numpy(),
            rows=column.offsets.to_numpy(),
        )
    except (OSError, ValueError, KeyError, AttributeError, pa.ArrowException):
        return None
    return plan if said == {**key, "sha256": _content(plan)} else None


def write_plan(path: Path, plan: Plan, key: dict[str, str]) -> None:
    """Write it whole or not at all; under the lock."""
    pieces = pa.StructArray.from_arrays(
        [pa.array(plan.starts), pa.array(plan.lengths)], ["start", "length"]
    )
    column = pa.LargeListArray.from_arrays(pa.array(plan.rows), pieces)
    schema = pa.schema(
        [pa.field("pieces", column.type)], metadata={**key, "sha256": _content(plan)}
    )
    with replacing(path) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))


def _content(plan: Plan) -> str:
    digest = hashlib.sha256()
    for part, dtype in ((plan.starts, np.int64), (plan.lengths, np.int32), (plan.rows, np.int64)):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(part, dtype).data)
    return digest.hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
