"""What a run's folder says, read leniently: every part of it may be missing or torn."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from xtdist.config import ConfigError, UserError, from_mapping
from xtdist.track.curves import Run, read_run
from xtdist.track.environment import FILE as ENVIRONMENT
from xtdist.track.events import ATTEMPTS, number, read_rows
from xtdist.train.spec import RunSpec

SIGNS = ("config.yaml", "metrics.jsonl", ATTEMPTS)
SILENT_S = 120.0  # after this long without a sign, a run without an end is called gone
T = TypeVar("T")


@dataclass(frozen=True)
class Missing:
    """Stands where something is not known, with the reason."""

    why: str

    def __str__(self) -> str:
        return self.why


@dataclass(frozen=True)
class Status:
    """``kind``: good, bad, warn or soft."""

    text: str
    kind: str


class RunFolder:
    """A run.

    Raises:
        ConfigError: the folder is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not any((self.path / name).is_file() for name in SIGNS):
            raise ConfigError(
                f"{path}: is no run: none of {', '.join(SIGNS)} is there; give the folder of a run "
                "(<output>/<name>)"
            )
        self.attempts = read_rows(self.path / ATTEMPTS)
        self.environments = read_rows(self.path / ENVIRONMENT)

    @cached_property
    def run(self) -> Run:
        return read_run(self.path)

    @cached_property
    def tree(self) -> dict[str, Any] | Missing:
        """The resolved config as it was written."""
        try:
            tree = yaml.safe_load((self.path / "config.yaml").read_bytes())
        except FileNotFoundError:
            return Missing("config.yaml is not in the folder")
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as e:
            return Missing(f"config.yaml can't be read: {str(e).splitlines()[0]}")
        return tree if isinstance(tree, dict) else Missing("config.yaml holds no settings")

    @cached_property
    def spec(self) -> RunSpec | Missing:
        if isinstance(self.tree, Missing):
            return self.tree
        try:
            return from_mapping(RunSpec, self.tree)
        except UserError as e:
            return Missing(f"config.yaml is not of this version of xtdist: {str(e)[:300]}")

    @property
    def name(self) -> str:
        given = self.tree.get("name") if isinstance(self.tree, dict) else None
        return given if isinstance(given, str) else self.run.name

    def last(self, metric: str) -> tuple[float, int] | None:
        """A metric's last value and its step."""
        s = self.run.series.get(metric)
        return (s.values[-1], s.steps[-1]) if s and s.steps else None

    @property
    def last_sign(self) -> float:
        """Seconds since 1970; 0: none."""
        beats = [p.stat().st_mtime for p in self.path.glob("beats/*.json")]
        seen = [s.times[-1] for s in self.run.series.values() if s.times]
        told = [number(row.get("time")) for row in self.attempts]
        return max([*beats, *seen, *told], default=0.0)

    @property
    def status(self) -> Status:
        """By the last attempt; without a record of one, by the steps."""
        steps = None if isinstance(self.spec, Missing) else self.spec.loop.steps
        done = max((s.steps[-1] for s in self.run.series.values() if s.steps), default=0)
        of = f"step {done:,} of {steps:,}" if steps else f"step {done:,}"
        last = self.attempts[-1] if self.attempts else None
        if last is None:
            if steps is not None and done >= steps:
                return Status(f"finished at {of}", "good")
            return Status(f"at {of}; how it ended is not recorded", "warn")
        if last.get("event") == "started":
            ago = max(0.0, time.time() - self.last_sign)
            if ago < SILENT_S:
                return Status(f"running: {of}, last sign {ago:.0f} s ago", "soft")
            when = moment(self.last_sign)
            return Status(f"killed or cut off: {of}; no end recorded, last sign {when}", "bad")
        if last.get("kind") == "done":
            early = steps is not None and done < steps
            return Status(f"{'ended early' if early else 'finished'} at {of}", "good")
        if last.get("kind") == "stopped":
            return Status(f"stopped by its user at {of}; the same command goes on", "warn")
        text = f": {last['text']}" if last.get("text") else ""
        return Status(f"failed at {of}: {last.get('kind')}{text}", "bad")

    def read_json(self, name: str, parse: Callable[[Any], T]) -> T | Missing:
        """A JSON file of the folder, parsed."""
        try:
            return parse(json.loads((self.path / name).read_bytes()))
        except FileNotFoundError:
            return Missing(f"{name} is not in the folder")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            return Missing(f"{name} can't be read: {str(e)[:200]}")
        except UserError as e:
            return Missing(f"{name} is not of this version of xtdist: {str(e)[:200]}")


def moment(seconds: float) -> str:
    """A time in UTC; ``-`` for none."""
    if not 0 < seconds < 2**35:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
