"""A folder that appears complete or not at all: built under a hidden name, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xtdist.config import ResourceError
from xtdist.files import sync

_MARGIN_BYTES = 16 * 2**20


@contextmanager
def staged(output: Path, *, needed_bytes: int) -> Iterator[Path]:
    """A hidden folder beside ``output`` to build in; removed on leaving, unless it was published.

    The builder holds a lock on it that dies with the process, so what a killed build left behind is
    told apart from a build that is running, and removed by the next one.

    Raises:
        ResourceError: no space (or no right) to write there; says how much is needed.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output)
        check_space(output, needed_bytes)
        folder = output.parent / f".{output.name}.build-{secrets.token_hex(4)}"
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(lock)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as e:
        raise _write_error(e, output, needed_bytes) from e


def publish(folder: Path, output: Path, *, replace: bool) -> None:
    """Make the finished ``folder`` visible as ``output``, moving what is there away if ``replace``.

    Raises:
        OSError: something appeared in ``output`` meanwhile, and ``replace`` is false.
    """
    sync(folder)
    old = None
    if replace and output.is_dir() and any(output.iterdir()):
        old = output.with_name(f".{output.name}.build-old-{secrets.token_hex(4)}")
        os.rename(output, old)
    os.rename(folder, output)
    sync(output.parent)
    if old:
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(output: Path) -> None:
    """Remove hidden build folders of ``output`` whose builder is dead."""
    for folder in output.parent.glob(f".{output.name}.build-*"):
        try:
            lock = os.open(folder, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def check_space(output: Path, needed_bytes: int) -> None:
    """Raise ResourceError unless the disk of ``output`` has room for ``needed_bytes``."""
    free = shutil.disk_usage(output.parent).free
    if free < needed_bytes + _MARGIN_BYTES:
        raise ResourceError(_space_message(output, needed_bytes, free))


def _write_error(e: OSError, output: Path, needed_bytes: int) -> ResourceError:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(output.parent).free
        return ResourceError(_space_message(output, needed_bytes, free))
    return ResourceError(
        f"output: can't write in {output.parent} ({e.strerror or e}); set another with output="
    )


def _space_message(output: Path, needed_bytes: int, free: int) -> str:
    return (
        f"no space left on the disk of {output.parent}: the dataset needs about "
        f"{(needed_bytes + _MARGIN_BYTES) / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; make "
        "room, or set another place with output="
    )
