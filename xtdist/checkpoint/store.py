"""The checkpoints of one run, local or on an object store: which there are, whether they are as
they were written, and which stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from xtdist.checkpoint.layout import FORMAT_VERSION, FormatError, Manifest
from xtdist.checkpoint.naming import new_attempt, step_of
from xtdist.checkpoint.retention import Retention
from xtdist.checkpoint.storage import LocalStorage, open_storage
from xtdist.config import CheckpointError


@dataclass(frozen=True)
class Commit:
    """One committed checkpoint; ``path`` is a folder of this host with its verified files."""

    path: Path
    step: int
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.path.name


class CheckpointStore:
    """The checkpoints under ``url``: a local folder, or ``s3://bucket/path``. Methods touch only
    the storage; who calls them on which rank is the training loop's business.

    Args:
        cache: where fetched files lie on this host, for object stores; asked when first needed.

    Attributes:
        held: names that ``prune`` leaves alone: somebody reads them.
    """

    def __init__(self, url: str | Path, *, cache: Callable[[], Path] | None = None) -> None:
        self.storage = open_storage(url, cache=cache)
        self.url = self.storage.url
        self.held: frozenset[str] = frozenset()
        self._metrics: dict[str, float] = {}

    @property
    def root(self) -> Path:
        """The folder of a local one.

        Raises:
            CheckpointError: it is on an object store.
        """
        if not isinstance(self.storage, LocalStorage):
            raise CheckpointError(f"{self.url}: is no folder of this machine")
        return self.storage.root

    def names(self) -> list[str]:
        """Names of committed checkpoints, oldest step first."""
        return sorted(self.storage.names(), key=lambda n: (step_of(n), n))

    def newest(self) -> tuple[str, Manifest] | None:
        """The newest one that says what it is; its files are not looked at.

        Raises:
            FormatError: another version wrote it.
        """
        for name in reversed(self.names()):
            try:
                return name, self.manifest(name)
            except FormatError:
                raise
            except CheckpointError:
                continue  # set aside once all workers are there
        return None

    def newest_step(self) -> int:
        """The step of the newest one, by its name; 0 if there is none."""
        names = self.names()
        return step_of(names[-1]) if names else 0

    def attempt(self, epoch: int = 0) -> str:
        """An id for one start of the workers; ask for it once, on one rank."""
        return new_attempt(epoch, [*self.storage.names(), *self.storage.leftovers()])

    def sweep(self) -> None:
        """Delete what saves without an end left behind. Call before training starts, on one rank,
        once no other process may write here (``Lease``): an owner that was cut off and only now
        wants to publish finds its files gone."""
        for name in self.storage.leftovers():
            self.storage.bury(name)

    def newest_valid(self) -> Commit | None:
        """The newest checkpoint whose every byte is as it was written; damaged ones are set aside,
        with a line that says so, and the one before tried."""
        for name in reversed(self.names()):
            try:
                return self.open(name)
            except FormatError:
                raise
            except CheckpointError as e:
                self.quarantine(name, str(e))
        return None

    def quarantine(self, name: str, why: str) -> None:
        """Set a damaged one aside, kept for inspection."""
        where = self.storage.set_aside(name, "damaged", why)
        print(f"checkpoint {name} is damaged and set aside ({where}): {why}", flush=True)

    def take_back(self, name: str, why: str) -> None:
        """Set one aside that is whole, but of steps that were undone."""
        self.storage.set_aside(name, "undone", why)

    def open(self, name: str, files: Iterable[str] | None = None) -> Commit:
        """Verify and return one checkpoint.

        Args:
            files: only these of its files; all of them by default.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        manifest = self.manifest(name)
        path = self.storage.fetch(name, manifest, manifest.files if files is None else files)
        return Commit(path=path, step=int(manifest.meta["step"]), manifest=manifest)

    def manifest(self, name: str) -> Manifest:
        """What one checkpoint says of itself.

        Raises:
            CheckpointError: it is missing, unreadable, or of another step than its name says.
            FormatError: another version wrote it.
        """
        if name not in (names := self.names()):
            have = ", ".join(names) or "none"
            raise CheckpointError(f"{self.url}/{name}: no such checkpoint; there are: {have}")
        manifest = self.storage.manifest(name)
        if manifest.format_version < FORMAT_VERSION:
            raise FormatError(
                f"{self.url}/{name}: was written by an older version of xtdist, whose checkpoints "
                "this one can't go on from (its weights can be used); give the run another name"
            )
        if manifest.meta.get("step") != step_of(name):
            raise CheckpointError(
                f"{self.url}/{name}: its manifest is of step {manifest.meta.get('step')}: damaged"
            )
        return manifest

    def prune(self, retention: Retention) -> None:
        """Delete all that ``retention`` does not keep, but what is held; the newest is never
        deleted."""
        names = self.names()
        if retention.keep_best:
            self._metrics |= {n: self._metric(n) for n in names if n not in self._metrics}
        rated = {n: m for n, m in self._metrics.items() if n in names and not math.isnan(m)}
        for name in names:
            if name not in retention.kept(names, rated) | self.held:
                self.storage.remove(name)
                self._metrics.pop(name, None)

    def _metric(self, name: str) -> float:
        try:
            value = self.storage.manifest(name).meta.get("metric")
        except CheckpointError:
            return math.nan
        return float(value) if isinstance(value, int | float) else math.nan
