import io
import re
import threading
import time
from pathlib import Path

import pytest

from xtdist.track import Record, Tracker, follow, progress_bar
from xtdist.track.console import Line, TrainStatus
from xtdist.track.text import duration, human


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(step: int, at: float, **values: float) -> Record:
    names = {"loss": "train/loss", "valid": "eval/valid/loss", "rate": "perf/tokens_per_s"}
    return Record(step=step, time=at, values={names[k]: v for k, v in values.items()})


def test_the_line_has_step_loss_valid_rate_and_time_left() -> None:
    status = TrainStatus(100)
    for step in range(1, 26):
        status.update(record(step, 2.0 * step, loss=3.21449, rate=12345), live=True)
    status.update(record(25, 50.0, valid=3.3), live=True)
    assert status.fraction == 0.25
    assert status.eta_s() == pytest.approx(75 * 2.0)
    assert status.text() == "step 25/100  loss 3.214  valid 3.300  12.3k tok/s  eta 2m 30s"


def test_what_becomes_known_later_of_an_earlier_step_is_shown_and_takes_no_step_back() -> None:
    status = TrainStatus(100)
    for step in range(1, 26):
        status.update(record(step, 2.0 * step, loss=3.0), live=True)
    status.update(record(10, 50.5, valid=3.3), live=True)
    assert status.eta_s() == pytest.approx(75 * 2.0)
    assert status.text() == "step 25/100  loss 3.000  valid 3.300  eta 2m 30s"


def test_the_time_left_knows_only_the_pace_of_now() -> None:
    status = TrainStatus(1000)
    for step in range(1, 101):
        status.update(record(step, float(step)), live=False)
    assert status.eta_s() is None
    status.update(record(101, 5000.0), live=True)
    assert status.eta_s() is None
    status.update(record(102, 5000.5), live=True)
    assert status.eta_s() == pytest.approx(898 * 0.5)
    status.update(record(90, 9000.0), live=True)  # a restart from a checkpoint
    assert status.eta_s() is None
    status.update(record(91, 9002.0), live=True)
    assert status.eta_s() == pytest.approx(909 * 2.0)


def test_a_pace_that_changes_is_followed_within_a_window() -> None:
    status = TrainStatus(1000)
    for step in range(1, 301):
        status.update(record(step, float(min(step, 100) + 10 * max(0, step - 100))), live=True)
    assert status.eta_s() == pytest.approx(700 * 10)


def test_plain_output_is_a_line_now_and_then_without_control_characters() -> None:
    out, now = io.StringIO(), [0.0]
    with Line(out, interval_s=5, clock=lambda: now[0]) as line:
        for i in range(101):
            now[0] = i / 10
            line.show(i / 100, f"step {i}/100")
    lines = out.getvalue().splitlines()
    assert [re.search(r"step (\d+)", text)[1] for text in lines] == ["0", "50", "100"]
    assert lines[1] == "[" + "#" * 12 + "-" * 12 + "]  50%  step 50/100"
    assert out.getvalue().isascii()
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_one_line_in_place_and_no_color_means_no_color(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    shown = {}
    for no_color in (None, "1"):
        if no_color is not None:
            monkeypatch.setenv("NO_COLOR", no_color)
        else:
            monkeypatch.delenv("NO_COLOR", raising=False)
        out = Terminal()
        with Line(out) as line:
            line.show(0.5, "step 1/2")
            line.show(1.0, "step 2/2")
        shown[no_color] = out.getvalue()
        assert "step 2/2" in out.getvalue()
        assert out.getvalue().count("\n") == 1
    colors = r"\x1b\[[0-9;]*3[0-9][;0-9]*m"
    assert re.search(colors, shown[None])
    assert not re.search(colors, shown["1"])


def test_a_reader_that_is_gone_does_not_end_the_work() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with progress_bar(3, "files", out=Gone()) as bar:
        bar.advance(3)
    assert bar.done == 3


def test_follow_shows_what_there_is_what_comes_and_the_end(tmp_path: Path) -> None:
    out, stop = io.StringIO(), threading.Event()
    tracker = Tracker(tmp_path)
    tracker.log(7, {"train/loss": 4.5})
    thread = threading.Thread(target=follow, args=(tmp_path, 20), kwargs={"stop": stop, "out": out})
    thread.start()
    while "step 7/20  loss 4.500" not in out.getvalue():
        assert thread.is_alive()
        time.sleep(0.01)
    for step in range(8, 21):
        tracker.log(step, {"train/loss": 4.0})
    stop.set()
    thread.join()
    assert out.getvalue().splitlines()[-1] == f"[{'#' * 24}] 100%  step 20/20  loss 4.000"


def test_follow_of_a_run_that_never_wrote_says_nothing(tmp_path: Path) -> None:
    out, stop = io.StringIO(), threading.Event()
    stop.set()
    follow(tmp_path / "none", 10, stop=stop, out=out)
    assert out.getvalue() == ""


def test_a_progress_bar_counts_bytes_or_things_with_or_without_a_total() -> None:
    out = io.StringIO()
    with progress_bar(50_000_000, "B", label="tokenize", out=out) as bar:
        for _ in range(50):
            bar.advance(1_000_000)
    assert re.search(r"100%  tokenize  50\.0MB of 50\.0MB  \S+B/s  in 0s\n$", out.getvalue())
    out = io.StringIO()
    with progress_bar(None, "documents", out=out) as bar:
        bar.update(1500)
    assert re.match(r"1\.50k documents  \S+ documents/s  in 0s\n$", out.getvalue())


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (7, "7"), (0.25, "0.2"), (12.34, "12.3"), (999, "999"), (999.7, "1.00k"),
        (1000, "1.00k"), (12345, "12.3k"), (99_960, "100k"), (1_234_567, "1.23M"),
        (5e9, "5.00G"), (2.5e12, "2.50T"), (float("nan"), "nan"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_numbers_are_short(number: float, text: str) -> None:
    assert human(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (72, "1m 12s"), (3599, "59m 59s"),
     (11100, "3h 05m"), (187_200, "2d 04h")],
)  # fmt: skip
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_shares_are_shown_where_they_say_something() -> None:
    status = TrainStatus(10)
    values = {"perf/mfu": 0.482, "perf/data_wait_share": 0.01, "perf/goodput": 0.966}
    status.update(Record(step=10, time=1.0, values=values), live=True)
    assert status.text() == "step 10/10  mfu 48 %  goodput 97 %"
    status.update(Record(step=10, time=1.0, values={"perf/data_wait_share": 0.31}), live=True)
    assert "data wait 31 %" in status.text()


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()])
def test_notes_that_come_while_a_run_is_followed_stand_on_lines_of_their_own(
    tmp_path: Path, out: io.StringIO
) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.note(1, "from an earlier attempt")
        tracker.log(1, {"train/loss": 3.0})
        stop = threading.Event()
        watcher = threading.Thread(
            target=follow, args=(tmp_path, 10), kwargs={"stop": stop, "out": out}
        )
        watcher.start()
        until = time.monotonic() + 30
        while not out.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
        tracker.log(4, {"train/loss": 2.0})
        tracker.note(4, "warning: rank 3 is slow")
        with (tmp_path / "notes.jsonl").open("a") as file:
            file.write('{"step": 5, "ti')
        stop.set()
        watcher.join()
    assert "step 4: warning: rank 3 is slow" in out.getvalue()
    assert "earlier" not in out.getvalue()
