"""``<run>/beats/rank-<r>.json``: what each worker is doing, a second old at most.

The counter says that a process lives, not its time: clocks of hosts differ.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "beats"
OVER = "over"
ORDER = (
    "start",
    "restore",
    "other",
    "evaluate",
    "checkpoint",
    "data",
    "forward",
    "backward",
    "optimizer",
    "rest",
    "reduce",
)
"""From the end of a step to that of the next. Who waits in a collective is the furthest."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One worker. ``count`` rises with every beat; ``attempt`` is the start of the workers that it
    belongs to; ``step`` counts finished steps."""

    attempt: str
    rank: int
    count: int
    step: int
    phase: str
    pid: int
    host: str

    @property
    def progress(self) -> tuple[int, int]:
        """Sorts workers by how far they are: the others wait for the first one."""
        return self.step, [*ORDER, OVER].index(self.phase)

    @property
    def over(self) -> bool:
        """The worker has ended its run; it beats no more."""
        return self.phase == OVER


def write_beat(folder: Path, beat: Beat) -> None:
    """Never raises: a full disk must not look like a hang, nor end anything."""
    path = folder / FOLDER / f"rank-{beat.rank}.json"
    part = path.with_name(f".{path.name}.{beat.pid}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(asdict(beat)))
        os.replace(part, path)  # no fsync: of no use after a power cut
    except OSError:
        return


def read_beats(folder: Path, *, attempt: str, world: int) -> dict[int, Beat]:
    """The newest beat of each worker of this attempt, as far as there is one."""
    found = {}
    for rank in range(world):
        try:
            raw = json.loads((folder / FOLDER / f"rank-{rank}.json").read_text())
            beat = Beat(**raw)
        except (OSError, ValueError, TypeError):
            continue
        if beat.attempt == attempt:
            found[rank] = beat
    return found


@dataclass(frozen=True)
class Verdict:
    """Who holds the others up. ``stopped``: their processes don't beat any more. ``ranks``: those
    that are to blame, the stopped ones if there are any; none if all stand at the same place."""

    ranks: tuple[int, ...]
    stopped: tuple[int, ...]
    text: str


def judge(before: dict[int, Beat], now: dict[int, Beat], *, world: int) -> Verdict:
    """From two looks at the beats, between which every living worker must have beaten."""
    stopped = tuple(
        rank
        for rank in range(world)
        if rank not in now
        or (not now[rank].over and rank in before and before[rank].count == now[rank].count)
    )
    if stopped:
        text = "; ".join(f"{_who(rank, now.get(rank))} does not answer" for rank in stopped)
        return Verdict(stopped, stopped, f"{text}; it was stopped, or its host is gone")
    alive = {rank: beat for rank, beat in now.items() if not beat.over}
    least = min((b.progress for b in alive.values()), default=None)
    behind = tuple(rank for rank, beat in alive.items() if beat.progress == least)
    if len(behind) == len(alive):
        where = f"in {alive[behind[0]].phase} of step {alive[behind[0]].step}" if behind else ""
        text = f"all {world} workers stand {where}: a collective, the network or a kernel hangs"
        return Verdict((), (), text)
    rest = next(beat for rank, beat in alive.items() if rank not in behind)
    text = "; ".join(f"{_who(rank, now[rank])} stands in {now[rank].phase}" for rank in behind)
    return Verdict(behind, (), f"{text}, while others wait for it in {rest.phase}")


def _who(rank: int, beat: Beat | None) -> str:
    return f"rank {rank}" if beat is None else f"rank {rank} (pid {beat.pid} on {beat.host})"
