"""A tracking server that fails in every way, and comes back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from xtdist.track import MlflowRun, Tracker
from xtdist.track.records import Tail
from xtdist.track.shipper import MlflowWriter, read_cursor

RUN_ID = "0" * 32
Point = tuple[str, int, float]


class Server(ThreadingHTTPServer):
    """MLflow's log-batch alone. ``mood``: what it does with a request; ``got``: what it stored, in
    order of arrival; ``asked``: how many requests came."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.mood = "well"
        self.got: list[Point] = []
        self.asked = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def end(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.asked += 1
        mood = server.mood
        if mood == "mute":
            time.sleep(30)
            return
        if mood in ("well", "deaf"):
            server.got += [(m["key"], m["step"], m["value"]) for m in body["metrics"]]
        if mood == "deaf":  # it stored all, and nobody learns of it
            self.connection.close()
            return
        answer = b"{}" if mood == "well" else b'{"error_code": "INTERNAL_ERROR"}'
        self.send_response(200 if mood == "well" else 500)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server = Server()
    yield server
    server.end()


def run_at(server: Server, folder: Path) -> MlflowRun:
    return MlflowRun(uri=f"http://127.0.0.1:{server.port}", run_id=RUN_ID, run_folder=str(folder))


def tracked(run: MlflowRun, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    """A tracker whose thread does not wait long between its tries."""
    monkeypatch.setattr("xtdist.track.shipper.MAX_WAIT_S", 0.1)
    tracker = Tracker(run.run_folder)
    tracker._writer = MlflowWriter(run, interval_s=0.02)
    return tracker


def written(run: MlflowRun) -> list[Point]:
    """Every point of metrics.jsonl, in order."""
    records = Tail(run.run_folder).poll_all()
    return [(name, r.step, value) for r in records for name, value in r.values.items()]


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("mood", ["ill", "mute"])
def test_an_outage_in_the_middle_loses_nothing_repeats_nothing_and_keeps_the_order(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mood: str
) -> None:
    run = run_at(server, tmp_path)
    tracker = tracked(run, monkeypatch)
    for step in range(1, 51):
        tracker.log(step, {"train/loss": 1 / step, "train/lr": step * 1e-4})
    assert tracker.flush(30)
    server.mood = mood
    before = server.asked
    for step in range(51, 1501):  # more than one request holds
        tracker.log(step, {"train/loss": 1 / step, "train/lr": step * 1e-4})
    until(lambda: server.asked > before)
    assert read_cursor(run) < Tail(tmp_path).path.stat().st_size
    server.mood = "well"
    tracker.log(1501, {"train/loss": 0.0})
    assert tracker.close(30)
    assert server.got == written(run)
    assert len(server.got) == 2 * 1500 + 1


def test_a_server_that_was_gone_is_found_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_at(server, tmp_path)
    tracker = tracked(run, monkeypatch)
    tracker.log(1, {"train/loss": 1.0})
    assert tracker.flush(30)
    server.end()
    for step in range(2, 100):
        tracker.log(step, {"train/loss": 1.0})
    assert not tracker.flush(0.2)
    again = Server(server.port)
    try:
        assert tracker.close(30)
    finally:
        again.end()
    assert server.got + again.got == written(run)


def test_an_answer_that_is_lost_repeats_equal_points_which_mlflow_keeps_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_at(server, tmp_path)
    tracker = tracked(run, monkeypatch)
    server.mood = "deaf"
    tracker.log(1, {"train/loss": 1.0})
    until(lambda: server.got)
    server.mood = "well"
    assert tracker.close(30)
    assert set(server.got) == {("train/loss", 1, 1.0)}
    assert len(server.got) > 1
