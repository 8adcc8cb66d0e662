"""Finding the checkpoint to go on from, by all ranks together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from xtdist.checkpoint import CheckpointStore, Commit, Manifest
from xtdist.checkpoint.layout import FormatError
from xtdist.config import CheckpointError, UnreachableError, UserError
from xtdist.train.state.identity import check_identity


def find_commit(
    store: CheckpointStore, identity_at: Callable[[int], dict[str, Any]]
) -> Commit | None:
    """The newest checkpoint whose every byte is as it was written, with its files on every host;
    None if this run never had one. All ranks call it; each reads its share of the files.

    A damaged one is set aside, and the one before it tried. Before that, what killed saves left is
    swept away.

    Args:
        identity_at: what this run is at a step (see :func:`identity`).

    Raises:
        CheckpointError: on all ranks: the newest one is of another run, or all are damaged.
        UserError: on all ranks: the storage can't be read.
    """
    damaged: str | None = None
    while True:
        answer = _from_rank_0(partial(_propose, store, identity_at, damaged))
        if answer is None:
            return None
        name, manifest = answer
        path, error = _fetch_share(store, name, manifest)
        damaged = _agree(name, error)
        if damaged is None:
            return Commit(path=path, step=int(manifest.meta["step"]), manifest=manifest)


def _propose(
    store: CheckpointStore, identity_at: Callable[[int], dict[str, Any]], damaged: str | None
) -> tuple[str, Manifest] | None:
    """Rank 0's part: the newest that is not known to be damaged, of this very run. ``damaged``:
    why the last proposal is."""
    if damaged is None:
        store.sweep()
    else:
        store.quarantine(store.names()[-1], damaged)
    for name in reversed(store.names()):
        try:
            manifest = store.manifest(name)
        except FormatError:
            raise
        except CheckpointError as e:
            store.quarantine(name, str(e))
            continue
        where = Path(f"{store.url}/{name}")
        check_identity(manifest.meta["identity"], identity_at(manifest.meta["step"]), where)
        return name, manifest
    if aside := store.storage.aside("damaged"):
        raise CheckpointError(
            f"{store.url}: all checkpoints of this run are damaged and set aside "
            f"({', '.join(sorted(aside))}); it does not begin again at step 0 by itself. Restore "
            "one of them, or remove or rename that folder to start over"
        )
    return None


def _fetch_share(
    store: CheckpointStore, name: str, manifest: Manifest
) -> tuple[Path, Exception | None]:
    """Where the files are for this rank, and what is wrong with its share of them. Large files are
    dealt out first, so that the ranks are done at about the same time."""
    index, count = _among_host() if store.storage.per_host else _among_all()
    names = sorted(manifest.files, key=lambda n: (-manifest.files[n].bytes, n))
    try:
        return store.storage.fetch(name, manifest, names[index::count]), None
    except (UserError, OSError) as e:
        return Path(), e


def _among_all() -> tuple[int, int]:
    return dist.get_rank(), dist.get_world_size()


def _among_host() -> tuple[int, int]:
    """This rank's place among those of its host, and how many they are."""
    own = f"{socket.gethostname()} {_boot()}"
    hosts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, own)
    mine = [rank for rank, host in enumerate(hosts) if host == own]
    return mine.index(dist.get_rank()), len(mine)


def _boot() -> str:
    try:
        namespace = os.readlink("/proc/self/ns/mnt")  # containers of a host share no cache
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + namespace
    except OSError:
        return ""


def _agree(name: str, error: Exception | None) -> str | None:
    """Why the proposal is damaged, if any rank found that.

    Raises:
        CheckpointError: a rank could not read its share, which says nothing about the content.
        UnreachableError: because the store is away.
    """
    found: list[Exception | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, error)
    errors = [each for each in found if each is not None]
    for each in errors:
        if not isinstance(each, CheckpointError):
            kind = UnreachableError if isinstance(each, UnreachableError) else CheckpointError
            raise kind(f"{name} can't be read: {each}")
    return str(errors[0]) if errors else None


def _from_rank_0(action: Callable[[], Any]) -> Any:
    """What ``action`` gives on rank 0, or the user's error that it raises, on all ranks."""
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            answer[0] = action()
        except UserError as e:
            answer[0] = e
        except OSError as e:
            answer[0] = CheckpointError(f"checkpoints can't be read: {e}")
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]
