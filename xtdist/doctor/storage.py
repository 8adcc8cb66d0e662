"""Folders and object stores: written, read, and the same on every node."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xtdist.config import UserError
from xtdist.data import TokenDataset
from xtdist.data.storage.config import CacheConfig
from xtdist.data.storage.location import is_remote, locate
from xtdist.data.storage.write import delete, read_if_there, write_small
from xtdist.doctor.finding import Finding, green, red
from xtdist.doctor.limited import limited
from xtdist.doctor.machine import existing

LIMIT_S = 30.0
PROBE = ".xtdist-doctor-"


@dataclass(frozen=True)
class Place:
    """``key``: of the config. ``write``: a run writes there; else it is a dataset that it reads."""

    key: str
    path: str
    write: bool


@dataclass(frozen=True)
class PlaceFacts:
    """``at``: the folder that was tried, which is above the place if that is not there yet."""

    place: Place
    at: str
    error: str | None = None


def try_place(place: Place, *, mark: str, cache: CacheConfig) -> PlaceFacts:
    """Write and read the small file of ``mark`` (which is left: see ``seen_marks``), or open the
    dataset."""
    at = place.path if is_remote(place.path) else str(_folder(place))
    try:
        if place.write:
            limited(lambda: _write(at, mark), seconds=LIMIT_S)
        else:
            limited(lambda: TokenDataset.open(place.path, "train", "size", cache), seconds=LIMIT_S)
    except (OSError, UserError) as e:
        return PlaceFacts(place, at, error=_reason(e))
    return PlaceFacts(place, at)


def _folder(place: Place) -> Path:
    path = Path(place.path).expanduser()
    try:
        return limited(lambda: existing(path), seconds=LIMIT_S)
    except OSError:
        return path


def _reason(e: Exception) -> str:
    return (getattr(e, "strerror", None) or str(e)).strip().splitlines()[0]


def _write(folder: str, mark: str) -> None:
    name, data = f"{PROBE}{mark}", mark.encode()
    if is_remote(folder):
        write_small(locate(folder), name, data)
        return
    path = Path(folder) / name
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if path.read_bytes() != data:
        raise OSError(f"{path}: what was written reads back differently")


def seen_marks(at: str, marks: tuple[str, ...]) -> tuple[str, ...]:
    """Of the files that all nodes have written, those that this one sees."""

    def look() -> tuple[str, ...]:
        if is_remote(at):
            where = locate(at)
            return tuple(m for m in marks if read_if_there(where, f"{PROBE}{m}") == m.encode())
        os.listdir(at)  # has NFS look again
        return tuple(m for m in marks if (Path(at) / f"{PROBE}{m}").is_file())

    try:
        return limited(look, seconds=LIMIT_S)
    except (OSError, UserError):
        return ()


def remove_mark(at: str, mark: str) -> None:
    """Leave nothing behind."""

    def remove() -> None:
        if is_remote(at):
            delete(locate(at).join(f"{PROBE}{mark}"))
        else:
            (Path(at) / f"{PROBE}{mark}").unlink(missing_ok=True)

    with contextlib.suppress(OSError, UserError):
        limited(remove, seconds=LIMIT_S)


def judge_place(facts: PlaceFacts) -> Finding:
    place = facts.place
    name = place.path.partition("?")[0]
    if facts.error is None:
        done = "written and read" if place.write else "opened"
        return green(place.key, f"{name}: {done}" + (f" in {facts.at}" * (name != facts.at)))
    if is_remote(place.path):
        fix = "aws s3 ls <bucket> and the variables AWS_… on that node"
    elif place.write:
        fix = f"mkdir -p {name} && chown $(id -u) {name}, or set {place.key} to another folder"
    else:
        fix = f"xtdist data verify {name}; copy it to every node or mount it, or fix {place.key}"
    return red(place.key, f"{name}: {facts.error}", fix)


def judge_shared(key: str, path: str, seen: Mapping[str, tuple[str, ...]]) -> Finding:
    """``seen``: by node, the nodes whose files it saw."""
    check = f"{key} on all nodes"
    blind = {n: sorted(set(seen) - set(others)) for n, others in seen.items()}
    blind = {n: missing for n, missing in blind.items() if missing}
    if not blind:
        return green(check, f"each of {len(seen)} nodes reads what the others write")
    node, missing = next(iter(blind.items()))
    return red(
        check,
        f"{path} is not the same folder everywhere: {node} does not see what "
        f"{', '.join(missing[:3])} wrote",
        f"mount -t nfs SERVER:/export {path} on every node, or set {key} to a shared folder",
    )
