"""A run that hangs: who is to blame, where every thread stood, and that it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ranks import environment, job_of
from runs import folder_of

from xtdist.train.beats import Beat, judge
from xtdist.train.watchdog import HANG_EXIT


def hang(spec: Any, fault: str, root: Path) -> tuple[list[int], dict[str, Any], list[str]]:
    """Run ``spec`` in two processes until they end: exit codes, ``hang.json``, their stacks."""
    (root / "jobs.json").write_text(json.dumps([job_of(spec, fault)]))
    log = root / "log"
    with log.open("w") as out:
        group = [
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("ranks.py")), str(root)],
                env=environment(rank, 2),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            for rank in range(2)
        ]
        try:
            codes = [process.wait(120) for process in group]
        finally:
            for process in group:
                process.kill()
    path = folder_of(spec) / "hang.json"
    assert path.exists(), log.read_text()
    told = json.loads(path.read_text())
    assert log.read_text().count(told["text"]) == 1  # said once, with where to look
    stacks = [(Path(told["stacks"]) / f"rank-{rank}.txt").read_text() for rank in range(2)]
    return codes, told, stacks


@pytest.mark.slow
def test_a_stopped_process_is_named_and_ended_with_the_rest(make_spec: Any, tmp_path: Path) -> None:
    spec = make_spec("stopped", {"stability.watchdog.stuck_s": 3.0})
    codes, told, stacks = hang(spec, "sigstop", tmp_path)
    assert told["ranks"] == told["stopped"] == [1]
    assert "rank 1 (pid" in told["text"]
    assert "does not answer" in told["text"]
    assert codes[0] == HANG_EXIT
    assert codes[1] in (HANG_EXIT, -9)
    assert "all_reduce" in stacks[0]  # it waits for the other one
    assert all("watchdog.py" in text and "xtdist/train/loop.py" in text for text in stacks)


@pytest.mark.slow
def test_a_rank_that_waits_for_its_data_is_named(make_spec: Any, tmp_path: Path) -> None:
    spec = make_spec("starved", {"stability.watchdog.stuck_s": 3.0})
    codes, told, stacks = hang(spec, "slow_data", tmp_path)
    assert (told["ranks"], told["stopped"], told["step"]) == ([1], [], 3)
    assert "stands in data" in told["text"]
    assert codes == [HANG_EXIT] * 2
    assert "all_reduce" in stacks[0]
    assert "in data for" in stacks[1]
    assert "in batches" in stacks[1]  # the function that sleeps


def beat(rank: int, count: int, step: int, phase: str) -> Beat:
    return Beat(
        attempt="a", rank=rank, count=count, step=step, phase=phase, pid=100 + rank, host="h"
    )


@pytest.mark.parametrize(
    ("rows", "ranks", "stopped"),
    [
        ([(1, 3, "reduce"), (1, 3, "reduce"), (1, 3, "data")], (2,), ()),
        ([(1, 4, "reduce"), (1, 3, "optimizer"), (1, 4, "reduce")], (1,), ()),
        ([(1, 3, "reduce"), (1, 3, "reduce"), (1, 3, "reduce")], (), ()),
        ([(1, 3, "reduce"), (0, 3, "over"), (1, 3, "data")], (2,), ()),
        ([(0, 3, "reduce"), (1, 3, "reduce"), (1, 3, "data")], (0,), (0,)),
        ([(1, 3, "reduce"), None, (1, 3, "data")], (1,), (1,)),
    ],
)
def test_who_does_not_beat_or_is_behind_holds_the_others_up(
    rows: list[tuple[int, int, str] | None], ranks: tuple[int, ...], stopped: tuple[int, ...]
) -> None:
    """A row: how much the count rose between the looks, finished steps, phase."""
    now = {r: beat(r, 10 + row[0], row[1], row[2]) for r, row in enumerate(rows) if row}
    before = {r: beat(r, 10, b.step, b.phase) for r, b in now.items()}
    found = judge(before, now, world=3)
    assert (found.ranks, found.stopped) == (ranks, stopped)
    for rank in ranks:
        assert f"rank {rank}" in found.text
