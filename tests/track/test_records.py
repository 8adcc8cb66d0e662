import json
import logging
import math
import os
import random
from pathlib import Path

import pytest

from xtdist.config import ResourceError
from xtdist.track import Tail, Tracker, read_series
from xtdist.track.records import CHUNK_BYTES, FILE, MetricLog


def write(folder: Path, *lines: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a") as file:
        file.write("".join(lines))


def line(step: int, **values: float) -> str:
    return json.dumps({"step": step, "time": 1000.0 + step, **values}) + "\n"


def test_what_was_logged_is_read_back_with_steps_and_times(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "new" / "run", clock=lambda: 12.5)
    log.append(1, {"train/loss": 3.0, "train/lr": 1e-4})
    log.append(2, {"train/loss": 2.5})
    log.append(2, {"eval/valid/loss": 2.75})
    log.close()
    series = read_series(tmp_path / "new" / "run")
    assert (series["train/loss"].steps, series["train/loss"].values) == ([1, 2], [3.0, 2.5])
    assert series["train/lr"].times == [12.5]
    assert series["eval/valid/loss"].steps == [2]


def test_every_line_is_valid_json_even_for_numbers_that_json_lacks(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf})

    def refuse(name: str) -> float:
        raise AssertionError(name)

    json.loads((tmp_path / FILE).read_text(), parse_constant=refuse)
    series = read_series(tmp_path)
    assert math.isnan(series["a"].values[0])
    assert (series["b"].values, series["c"].values) == ([math.inf], [-math.inf])


def test_repeated_steps_replace_the_discarded_attempt_up_to_its_end(tmp_path: Path) -> None:
    rng = random.Random(0)
    with_attempts: dict[int, float] = {}
    start = 0
    for attempt in range(20):
        end = start + rng.randrange(1, 30)
        with_attempts = {s: v for s, v in with_attempts.items() if s <= start}
        for step in range(start + 1, end + 1):
            with_attempts[step] = attempt + step / 100
            write(tmp_path, line(step, loss=with_attempts[step]))
        start = rng.randrange(0, end)
    series = read_series(tmp_path)["loss"]
    assert dict(zip(series.steps, series.values, strict=True)) == with_attempts
    assert series.steps == sorted(set(series.steps))


def test_a_line_torn_by_a_kill_is_skipped_and_the_next_run_starts_a_new_line(
    tmp_path: Path,
) -> None:
    write(tmp_path, line(1, loss=5.0), '{"step": 2, "time": 3.0, "lo')
    assert read_series(tmp_path)["loss"].steps == [1]
    with Tracker(tmp_path) as tracker:
        tracker.log(2, {"loss": 4.0})
        tracker.log(3, {"loss": 3.0})
    assert read_series(tmp_path)["loss"].values == [5.0, 4.0, 3.0]


@pytest.mark.parametrize(
    "rubbish",
    ["\n", "[]\n", "3\n", '{"step": 1}\n', '{"step": "x", "time": 1}\n', "\x00\xff\n", "{\n"],
)
def test_rubbish_between_records_is_skipped(tmp_path: Path, rubbish: str) -> None:
    write(tmp_path, line(1, loss=5.0), rubbish, line(2, loss=4.0))
    assert read_series(tmp_path)["loss"].steps == [1, 2]


def test_a_file_larger_than_a_chunk_is_read_whole_and_rubbish_of_that_size_passed(
    tmp_path: Path,
) -> None:
    count = CHUNK_BYTES // 40
    write(tmp_path, *(line(s, loss=0.0) for s in range(count)))
    write(tmp_path, "x" * (2 * CHUNK_BYTES), "\n", line(count, loss=1.0))
    assert (tmp_path / FILE).stat().st_size > 3 * CHUNK_BYTES
    assert read_series(tmp_path)["loss"].steps == list(range(count + 1))


def test_a_tail_gives_each_record_once_and_a_growing_line_only_when_it_is_whole(
    tmp_path: Path,
) -> None:
    tail = Tail(tmp_path)
    assert tail.poll() == []
    text = line(1, loss=5.0)
    write(tmp_path, text[:10])
    assert tail.poll() == []
    write(tmp_path, text[10:], line(2, loss=4.0))
    assert [r.step for r in tail.poll()] == [1, 2]
    assert tail.poll() == []
    again = Tail(tmp_path, offset=len(text))
    assert [r.step for r in again.poll()] == [2]


def test_a_full_disk_costs_metrics_but_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_for_real, full = os.write, [False]

    def write_until_full(fd: int, data: bytes) -> int:
        return write_for_real(fd, data[:7] if full[0] else data)

    log = MetricLog(tmp_path)
    log.append(1, {"loss": 1.0})
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "write", write_until_full)
        full[0] = True
        log.append(2, {"loss": 2.0})
        log.append(3, {"loss": 3.0})
    assert len(caplog.records) == 1
    assert "step 2" in caplog.text
    log.append(4, {"loss": 4.0})
    assert read_series(tmp_path)["loss"].steps == [1, 4]


def test_a_value_that_is_no_number_or_a_closed_log_never_raises(tmp_path: Path) -> None:
    log = MetricLog(tmp_path)
    log.append(1, {"loss": "high"})  # type: ignore[dict-item]
    log.append(2, {"loss": 2.0})
    log.close()
    log.close()
    log.append(3, {"loss": 3.0})
    assert read_series(tmp_path)["loss"].steps == [2]


def test_a_run_folder_that_can_not_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"file/run/metrics\.jsonl: can't be written"):
        Tracker(tmp_path / "file" / "run")


def test_a_run_without_metrics_has_no_series(tmp_path: Path) -> None:
    assert read_series(tmp_path / "nothing") == {}
