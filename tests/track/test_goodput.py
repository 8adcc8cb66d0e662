"""Where a run's time went, over attempts, crashes and stops."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from xtdist.track import Goodput, Ledger, read_goodput
from xtdist.track.goodput import BUCKETS, FILE, Bucket


class Clock:
    """Seconds since 1970, as told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def ran(
    ledger: Ledger, clock: Clock, *, first: int, last: int, spent: Mapping[Bucket, float]
) -> None:
    """Steps after ``first`` up to ``last``, each of which took ``spent``."""
    for step in range(first + 1, last + 1):
        clock.now += sum(spent.values())
        ledger.spend(step, spent)


def shown(goodput: Goodput) -> dict[str, float]:
    return {bucket: round(s, 3) for bucket, s in goodput.seconds.items() if abs(s) > 1e-6}


def test_every_second_of_a_run_with_a_crash_and_a_stop_is_somewhere(tmp_path: Path) -> None:
    clock = Clock()
    Ledger(tmp_path, clock=clock).start(0)  # the driver
    clock.now += 20  # until the workers are there
    ledger = Ledger(tmp_path, clock=clock)
    clock.now += 5
    ledger.start(0, ago_s=5, attempt=True)
    ledger.spend(0, {"program_start": 4.0, "checkpoint_restore": 1.0}, flush=True)
    ran(ledger, clock, first=0, last=10, spent={"productive": 2.0, "data_wait": 0.5})
    clock.now += 3
    ledger.spend(10, {"checkpoint_save": 3.0}, flush=True)
    ran(ledger, clock, first=10, last=14, spent={"productive": 2.0})
    # killed; noticed and started again 40 s later, from step 10
    clock.now += 40
    ledger = Ledger(tmp_path, clock=clock)
    clock.now += 6
    ledger.start(10, ago_s=6, attempt=True)
    ledger.spend(10, {"program_start": 6.0}, flush=True)
    ran(ledger, clock, first=10, last=20, spent={"productive": 2.0, "other": 0.1})
    ledger.close(ended=True)
    clock.now += 500  # the user is away
    Ledger(tmp_path, clock=clock).start(20)
    clock.now += 9
    ledger = Ledger(tmp_path, clock=clock)
    ledger.start(20, attempt=True)
    ran(ledger, clock, first=20, last=21, spent={"productive": 2.0, "evaluation": 1.0})
    ledger.close(ended=True)

    goodput = read_goodput(tmp_path)
    assert shown(goodput) == {
        "productive": 42.0,
        "wasted_progress": 8.0,
        "program_start": 20 + 4 + 6 + 9,
        "data_wait": 5.0,
        "checkpoint_save": 3.0,
        "checkpoint_restore": 1.0,
        "evaluation": 1.0,
        "infrastructure_recovery": 40.0,
        "other": 501.0,
    }
    assert goodput.elapsed == pytest.approx(clock.now - 1000)
    assert sum(goodput.seconds.values()) == pytest.approx(goodput.elapsed)
    assert goodput.attempts == 3
    assert shown(ledger.goodput) == shown(goodput)
    assert goodput.text().startswith("goodput 6.6 % of 10m 40s: other 78.3 %, infrastructure")


@pytest.mark.parametrize("seed", range(20))
def test_the_buckets_add_up_in_any_history(tmp_path: Path, seed: int) -> None:
    """Kills at any moment, clocks of other hosts, checkpoints of any step; what is kept is the time
    of the last run of every step."""
    rng = np.random.default_rng(seed)
    clock, step, kept = Clock(), 0, {}
    for _ in range(6):
        clock.now += float(rng.uniform(0, 30))
        saved = int(rng.integers(0, step + 1)) if step else 0
        kept = {s: v for s, v in kept.items() if s <= saved}
        ledger = Ledger(tmp_path, clock=clock)
        ledger.start(saved, attempt=True)
        for step in range(saved + 1, saved + int(rng.integers(2, 30))):
            spent: dict[Bucket, float] = {"productive": float(rng.uniform(1, 3))}
            if rng.random() < 0.3:
                spent[BUCKETS[int(rng.integers(2, 9))]] = float(rng.uniform(0, 2))
            kept[step] = spent["productive"]
            clock.now += sum(spent.values())
            ledger.spend(step, spent, flush=True)
        clock.now -= float(rng.uniform(0, 1))  # the next host's clock is late
    goodput = read_goodput(tmp_path)
    assert sum(goodput.seconds.values()) == pytest.approx(goodput.elapsed)
    assert min(goodput.seconds.values()) >= -1e-9
    assert goodput.seconds["productive"] == pytest.approx(sum(kept.values()), abs=6.0)


def test_a_restart_inside_a_line_keeps_its_share_of_the_steps(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger(tmp_path, clock=clock)
    ledger.start(0, attempt=True)
    for step in range(1, 9):
        clock.now += 0.1  # lines are a second apart: one line for all
        ledger.spend(step, {"productive": 0.1})
    ledger.flush()
    ledger.start(2, attempt=True)
    assert shown(read_goodput(tmp_path)) == {"productive": 0.2, "wasted_progress": 0.6}


def test_torn_and_foreign_lines_are_skipped_and_no_file_is_no_time(tmp_path: Path) -> None:
    assert read_goodput(tmp_path).text() == "goodput 0.0 % of 0s"
    clock = Clock()
    ledger = Ledger(tmp_path, clock=clock)
    ledger.start(0, attempt=True)
    with (tmp_path / FILE).open("a") as file:
        file.write('\n{"event": "spent", "ti')
    clock.now += 2
    ledger.spend(1, {"productive": 2.0}, flush=True)
    with (tmp_path / FILE).open("a") as file:
        file.write('\n[1]\n{"event": "start"}\n\xff\n')
        file.write('{"event": "start", "time": 0, "step": 1e999}\n')
        file.write(
            '{"event": "start", "time": NaN, "step": 1}\n{"event": "start", "time": 1e999}\n'
        )
        file.write('{"event": "spent", "time": 1, "step": 1, "first": 0, "seconds": {"rest": 1}}\n')
    assert shown(read_goodput(tmp_path)) == {"productive": 2.0}


def test_a_disk_that_takes_nothing_stops_no_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "file" / "below")
    (tmp_path / "file").write_text("")
    ledger.start(0, attempt=True)
    ledger.spend(1, {"productive": 2.0}, flush=True)
