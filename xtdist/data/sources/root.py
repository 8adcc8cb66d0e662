"""The place that a source's files lie below: a local folder, S3 or GCS."""

from __future__ import annotations

import io
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from xtdist.config import DataError
from xtdist.data.sources.patterns import matcher
from xtdist.data.sources.unit import Input
from xtdist.data.storage.location import Location, locate
from xtdist.data.storage.retry import retry
from xtdist.data.storage.transfer import open_input

PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_NOT_UNPACKED = (".xz", ".lz4", ".zip", ".7z", ".br", ".tar", ".tgz")
_MOST_ENDINGS = 5
_LOCAL_BUFFER = 2**18


@dataclass(frozen=True, kw_only=True)
class Root:
    """``only``: the source was given as one file, and this is its name below the root.
    ``leave_out``: folders of these names are not looked into, wherever they are."""

    at: Location
    only: str | None = None
    leave_out: frozenset[str] = frozenset()

    def where(self, name: str) -> str:
        """What messages call the file ``name``."""
        return f"{self.at.name.rstrip('/')}/{name}"

    def files(self, pattern: str) -> list[Input]:
        """The files that match, by name; links to files count, links to folders are not followed.

        Raises:
            DataError: there is none, or a folder or file that can't be looked at.
        """
        matches = matcher(pattern)
        if self.only is not None:
            return [Input(name=self.only, bytes=self.size(self.only))]
        found = sorted(
            Input(name=name, bytes=self.size(name) if size is None else size)
            for name, size in self._names()
            if matches(name) and (size is not None or self._regular(name))
        )
        if not found:
            raise DataError(
                f"source: no file in {self.at.name} matches {pattern!r}; {self._instead()}"
            )
        for name, _ in found:
            if name.endswith(_NOT_UNPACKED):
                raise DataError(
                    f"{self.where(name)}: this kind of packing is not read; pack the text as "
                    f"{', '.join(PACKED)}, or not at all"
                )
        return found

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            DataError: it is not there.
        """
        if not self.at.remote:
            with reading(self.where(name)):
                return os.stat(self._path(name)).st_size
        info = self._info(self._path(name))
        if not info.is_file:
            raise DataError(f"{self.where(name)}: there is no such file")
        return int(info.size)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        path = self._path(name)
        return self._info(path).is_file if self.at.remote else os.path.isfile(path)

    def stamp(self, name: str) -> str:
        """Size and time of change of a file, in nanoseconds."""
        if not self.at.remote:
            found = os.stat(self._path(name))
            return f"{found.st_size} {found.st_mtime_ns}"
        info = self._info(self._path(name))
        return f"{info.size} {info.mtime_ns}"

    def open(self, name: str) -> io.BufferedReader:
        """The stored bytes of a file.

        Raises:
            DataError: it can't be opened.
        """
        with reading(self.where(name)):
            if self.at.remote:
                return open_input(self.at.join(name))
            return io.BufferedReader(io.FileIO(self._path(name)), _LOCAL_BUFFER)

    def unpacked(self, name: str) -> io.BufferedReader:
        """The bytes of a file, unpacked if its name ends in ``.gz``, ``.zst`` or ``.bz2``."""
        file = self.open(name)
        kind = packing(name)
        if kind is None:
            return file
        if not file.peek(1):
            file.close()
            raise _damaged(self.where(name), f"no byte of {kind}")
        return io.BufferedReader(pa.CompressedInputStream(file, kind), _LOCAL_BUFFER)

    def _names(self) -> Iterator[tuple[str, int | None]]:
        return self._remote() if self.at.remote else self._local()

    def _instead(self) -> str:
        """What to do where no file matches: the endings that there are, most frequent first."""
        endings = Counter(_ending(name) for name, _ in self._names())
        most = endings.most_common(_MOST_ENDINGS)
        if not most:
            return "there is no file at all; check source.path"
        there = ", ".join(f"{number:,} of **/{pattern}" for pattern, number in most)
        more = ", and others" if len(endings) > len(most) else ""
        return f"there are {there}{more}; check source.path, or set source.pattern"

    def _path(self, name: str) -> str:
        return f"{self.at.path.rstrip('/')}/{name}"

    def _local(self) -> Iterator[tuple[str, int | None]]:
        """The names below the root; sizes are asked for where a name matches."""
        with reading(self.at.name):
            for folder, folders, names in os.walk(self.at.path, onerror=_raise):
                folders[:] = [name for name in folders if name not in self.leave_out]
                below = os.path.relpath(folder, self.at.path).replace(os.sep, "/")
                yield from ((n if below == "." else f"{below}/{n}", None) for n in names)

    def _remote(self) -> Iterator[tuple[str, int | None]]:
        from pyarrow import fs

        selector = fs.FileSelector(self.at.path, recursive=True, allow_not_found=True)
        infos = retry(lambda: self.at.filesystem.get_file_info(selector), what=self.at.name)
        start = len(self.at.path.rstrip("/")) + 1
        return ((i.path[start:], int(i.size)) for i in infos if i.is_file)

    def _regular(self, name: str) -> bool:
        """Not a pipe, socket or device, and with a name that is text on every machine."""
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{self.at.name}: the name of file {os.fsencode(name)!r} is not UTF-8; rename it"
            ) from None
        with reading(self.where(name)):
            return stat.S_ISREG(os.stat(self._path(name)).st_mode)

    def _info(self, path: str) -> Any:
        return retry(lambda: self.at.filesystem.get_file_info(path), what=self.at.name)


def open_root(path: str, *, may_be_file: bool) -> Root:
    """The root of ``source.path``; for one file, the folder that it lies in.

    Raises:
        DataError: there is nothing, or a file where a folder is needed.
        ConfigError: a URI that is none of ours.
    """
    at = locate(path)
    if not at.remote:
        is_folder, is_file = os.path.isdir(at.path), os.path.isfile(at.path)
    else:
        info = retry(lambda: at.filesystem.get_file_info(at.path), what=at.name)
        is_folder, is_file = info.type.name == "Directory", info.is_file
    if is_file and may_be_file:
        return Root(at=_folder_of(at), only=at.path.rsplit("/", 1)[1])
    if is_file:
        raise DataError(f"source.path: {at.name} is not a folder; give the folder")
    if not is_folder:
        wanted = "a file or a folder of them" if may_be_file else "the folder"
        raise DataError(f"source.path: {at.name} does not exist; give {wanted}")
    return Root(at=at)


def _folder_of(at: Location) -> Location:
    return Location(
        name=at.name.rstrip("/").rpartition("/")[0] or ("." if at.name[:1] != "/" else "/"),
        filesystem=at.filesystem,
        path=at.path.rpartition("/")[0],
        remote=at.remote,
    )


def _ending(name: str) -> str:
    """A pattern for names that end as this one does: ``*.json.gz``."""
    stem, ending = os.path.splitext(name.rpartition("/")[2])
    before = os.path.splitext(stem)[1] if ending in PACKED else ""
    return f"*{before}{ending}"


def packing(name: str) -> str | None:
    """How a file of that name is packed; None: it is plain."""
    return PACKED.get(os.path.splitext(name)[1])


@contextmanager
def reading(where: str) -> Iterator[None]:
    """A failed read becomes a DataError that names ``where``."""
    try:
        yield
    except (OSError, pa.ArrowException) as e:
        number = getattr(e, "errno", None)
        if number:
            raise DataError(f"{where}: can't be read ({os.strerror(number)})") from None
        raise _damaged(where, " ".join(str(e).split())[:300]) from None


def _damaged(where: str, why: str) -> DataError:
    return DataError(
        f"{where}: can't be read ({why}); it is damaged or of another kind: restore it, or leave "
        "it out of the source"
    )


def _raise(error: OSError) -> None:
    raise error
