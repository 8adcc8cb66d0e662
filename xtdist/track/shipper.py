"""Sends ``metrics.jsonl`` to MLflow from a background thread.

The file is the queue and the spool at once: a cursor beside it says how far MLflow has it. A slow
or absent server costs the training step nothing and loses nothing; a killed process or a later
resume goes on at the cursor. After a crash between sending and moving the cursor, one batch is sent
twice, which the readers' rule (:mod:`xtdist.track.records`) makes harmless.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from xtdist.track.mlflow import MlflowRun, RunStatus, brief, connect
from xtdist.track.records import FILE, Record, Tail

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

CURSOR_FILE = "mlflow_cursor.json"
POINTS_PER_CALL = 1000  # MLflow's limit
MAX_WAIT_S = 30.0
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
_log = logging.getLogger(__name__)


class MlflowWriter:
    """Owns the thread. ``close`` it before the process ends, else the rest waits in the file."""

    def __init__(self, run: MlflowRun, *, interval_s: float = 1.0) -> None:
        self._run = run
        self._interval_s = interval_s
        self._path = Path(run.run_folder) / FILE
        self._shipment = Shipment(run)
        self._sent_bytes = self._shipment.sent_bytes
        self._warned_away = False
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._sent = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until MLflow has all that is in the file now; False if it has not in time."""
        written = Tail(self._run.run_folder, offset=self._sent_bytes)
        written.poll_all()
        goal = written.offset
        self._wake.set()
        with self._sent:
            return self._sent.wait_for(lambda: self._sent_bytes >= goal, timeout_s)

    def close(self, timeout_s: float = 10.0) -> bool:
        """Send the rest and stop; False if MLflow does not have everything."""
        done = self.flush(timeout_s)
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=1.0 if not done else timeout_s)
        return done

    def _work(self) -> None:
        wait_s = self._interval_s
        while not self._closing.is_set():
            self._wake.wait(wait_s)
            self._wake.clear()
            try:
                while not self._closing.is_set() and self._ship_some():
                    pass
                wait_s = self._interval_s
                self._warned_away = False
            except Exception as e:  # the server, the network, the disk: try again later
                wait_s = min(2 * wait_s, MAX_WAIT_S)
                if not self._warned_away:
                    text = "MLflow at %s is away; metrics wait in %s: %s"
                    _log.warning(text, self._run.uri, self._path, brief(e))
                self._warned_away = True

    def _ship_some(self) -> bool:
        """Send one piece of the file; False if there was nothing left."""
        more = self._shipment.some()
        with self._sent:
            self._sent_bytes = self._shipment.sent_bytes
            self._sent.notify_all()
        return more


class Shipment:
    """The way of a folder's ``metrics.jsonl`` to MLflow, from where its cursor stands."""

    def __init__(self, run: MlflowRun) -> None:
        self._run = run
        self.sent_bytes = read_cursor(run)
        self._client: MlflowClient | None = None
        self._warned_refused = False

    def some(self) -> bool:
        """Send one piece of the file; False if there was nothing left. Raises as MLflow does."""
        tail = Tail(self._run.run_folder, offset=self.sent_bytes)
        records = tail.poll()
        if tail.offset == self.sent_bytes:
            return False
        if self._client is None:
            self._client = connect(self._run.uri)
        for points in _batches(records):
            self._send(self._client, points)
        self.sent_bytes = tail.offset
        write_cursor(self._run, tail.offset)
        return True

    def _send(self, client: MlflowClient, points: list[Metric]) -> None:
        """Send a batch; if MLflow refuses it, send its points one by one and skip the refused
        ones (they would block all others for ever)."""
        from mlflow.exceptions import MlflowException

        try:
            client.log_batch(self._run.run_id, metrics=points)
        except MlflowException as e:
            if e.error_code not in _REFUSED:
                raise
            if len(points) > 1:
                for point in points:
                    self._send(client, [point])
                return
            if not self._warned_refused:
                _log.warning("MLflow refused the metric %r: %s", points[0].key, brief(e))
            self._warned_refused = True


def finish_run(run: MlflowRun, status: RunStatus, *, timeout_s: float = 10.0) -> bool:
    """The driver's last word, when no worker writes any more: send what a killed worker left, mark
    the run as over. False (with a warning) if the server is away; never raises."""
    sent = MlflowWriter(run).close(timeout_s)
    return run.set_ended(status) and sent


def read_cursor(run: MlflowRun) -> int:
    """How many bytes of the file this MLflow run already has."""
    try:
        cursor = json.loads((Path(run.run_folder) / CURSOR_FILE).read_text())
        return int(cursor["offset_bytes"]) if cursor["run_id"] == run.run_id else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def write_cursor(run: MlflowRun, offset_bytes: int) -> None:
    """Remember how far MLflow has the file."""
    path = Path(run.run_folder) / CURSOR_FILE
    temp = path.with_suffix(".tmp")
    temp.write_text(json.dumps({"run_id": run.run_id, "offset_bytes": offset_bytes}) + "\n")
    os.replace(temp, path)


def _batches(records: list[Record]) -> Iterator[list[Metric]]:
    from mlflow.entities import Metric

    points = [
        Metric(name, value, round(record.time * 1000), record.step)
        for record in records
        for name, value in record.values.items()
    ]
    for start in range(0, len(points), POINTS_PER_CALL):
        yield points[start : start + POINTS_PER_CALL]
