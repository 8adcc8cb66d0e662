import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from xtdist.config import ConfigError, ResourceError, configclass, from_mapping, load
from xtdist.track import MlflowRun, TrackConfig, Tracker, finish_run, metric_history, open_run
from xtdist.track.datasets import Context, TokenData
from xtdist.track.lookup import RUN_FILE
from xtdist.track.records import MetricLog
from xtdist.track.shipper import CURSOR_FILE, MlflowWriter


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> TrackConfig:
    """One database for all tests."""
    file = shutil.copy(empty_mlflow, tmp_path_factory.mktemp("mlflow") / "shared.db")
    return TrackConfig(uri=f"sqlite:///{file}")


def opened(config: TrackConfig, folder: Path, **params: object) -> MlflowRun:
    run = open_run(config, run_folder=folder, name="small", params=params)
    assert run is not None
    return run


def points(run: MlflowRun, name: str) -> list[tuple[int, float]]:
    """All points that MLflow holds, by its own API."""
    history = MlflowClient(run.uri).get_metric_history(run.run_id, name)
    return sorted((p.step, p.value) for p in history)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_a_run_has_params_tags_dataset_config_metrics_and_an_end(
    config: TrackConfig, tmp_path: Path
) -> None:
    params = {"optim": {"lr": 1e-3, "betas": [0.9, 0.95]}, "amateur": None, "name": "x" * 9000}
    run = open_run(config, run_folder=tmp_path, name="small", params=params, tags={"git": "abc"})
    assert run is not None
    with Tracker(tmp_path, run) as tracker:
        for step in range(1, 2001):
            tracker.log(step, {"train/loss": 1 / step})
        tracker.log(2000, {"eval/valid/loss": math.nan})
    plot = tmp_path / "loss.png"
    plot.write_bytes(b"png")
    assert run.log_artifact(plot)
    assert run.log_text("a: 1\n", "config.yaml")
    contexts: tuple[Context, ...] = ("training", "validation")
    data = [
        TokenData(path=str(tmp_path / "d"), dataset_id="ab" * 32, context=c, tokens=5, documents=2)
        for c in contexts
    ]
    assert run.log_inputs(data)
    assert run.log_inputs(data)
    assert finish_run(run, "FINISHED")

    client = MlflowClient(run.uri)
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "small"
    assert stored.data.params == {
        "optim.lr": "0.001",
        "optim.betas": "[0.9, 0.95]",
        "amateur": "null",
        "name": "x" * 6000,
    }
    assert stored.data.tags["git"] == "abc"
    assert points(run, "train/loss") == [(s, 1 / s) for s in range(1, 2001)]
    assert math.isnan(points(run, "eval/valid/loss")[0][1])
    assert {a.path for a in client.list_artifacts(run.run_id)} == {"loss.png", "config.yaml"}
    linked = {i.tags[0].value: i.dataset for i in stored.inputs.dataset_inputs}
    assert len(stored.inputs.dataset_inputs) == 2
    for context, split in (("training", "train"), ("validation", "valid")):
        dataset = linked[context]
        assert (dataset.name, dataset.digest) == (f"d/{split}", "ab" * 16)
        facts = {"dataset_id": "ab" * 32, "split": split, "tokens": 5, "documents": 2}
        assert json.loads(dataset.profile) == facts
        assert json.loads(dataset.schema)["mlflow_colspec"][0]["name"] == "token_ids"


def test_by_default_everything_stays_in_the_run_folder(
    config: TrackConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    opened(config, tmp_path / "other")
    (tmp_path / "run").mkdir()
    shutil.copy(str(config.uri).removeprefix("sqlite:///"), tmp_path / "run" / "mlflow.db")
    own = TrackConfig(experiment="own")  # in a copy of the tables, which take seconds to make
    run = open_run(own, run_folder="../run", name="small", params={})
    assert run is not None
    assert run.uri == f"sqlite:///{tmp_path}/run/mlflow.db"
    assert run.log_text("x", "note.txt")
    assert finish_run(run, "FAILED")
    assert list(elsewhere.iterdir()) == []
    assert len(list((tmp_path / "run").rglob("note.txt"))) == 1


def test_a_resume_joins_the_same_run_also_when_its_note_is_lost(
    config: TrackConfig, tmp_path: Path
) -> None:
    run = opened(config, tmp_path, lr=1)
    finish_run(run, "FAILED")
    assert opened(config, tmp_path, lr=2, depth=3) == run
    stored = MlflowClient(run.uri).get_run(run.run_id)
    assert stored.info.status == "RUNNING"
    assert stored.data.params == {"lr": "1", "depth": "3"}
    assert stored.data.tags["changed.lr"] == "2"
    (tmp_path / RUN_FILE).unlink()
    assert opened(config, tmp_path) == run
    (tmp_path / RUN_FILE).write_text("{torn")
    assert opened(config, tmp_path) == run


def test_the_same_name_in_another_folder_or_after_deletion_is_another_run(
    config: TrackConfig, tmp_path: Path
) -> None:
    first, second = opened(config, tmp_path / "a"), opened(config, tmp_path / "b")
    assert first.run_id != second.run_id
    MlflowClient(first.uri).delete_run(first.run_id)
    assert opened(config, tmp_path / "a").run_id not in (first.run_id, second.run_id)


def test_steps_repeated_after_a_crash_are_settled_for_readers(
    config: TrackConfig, tmp_path: Path
) -> None:
    run = opened(config, tmp_path)
    for attempt, steps in enumerate([range(1, 31), range(11, 21)]):
        with Tracker(tmp_path, run) as tracker:
            for step in steps:
                tracker.log(step, {"train/loss": float(attempt)})
        time.sleep(0.002)  # MLflow keeps milliseconds
    assert len(points(run, "train/loss")) == 40
    series = metric_history(run.uri, run.run_id, "train/loss")
    assert series.steps == list(range(1, 21))
    assert series.values == [0.0] * 10 + [1.0] * 10


def test_metrics_wait_while_the_server_is_away_and_are_sent_once_when_it_is_back(
    config: TrackConfig, tmp_path: Path
) -> None:
    here = opened(config, tmp_path)
    with Tracker(tmp_path, here) as tracker:
        tracker.log(1, {"train/loss": 1.0})
    away = MlflowRun(
        uri=f"http://127.0.0.1:{free_port()}", run_id=here.run_id, run_folder=here.run_folder
    )
    tracker = Tracker(tmp_path, away)
    for step in range(2, 101):
        tracker.log(step, {"train/loss": float(step)})
    assert not tracker.close(timeout_s=0.2)
    assert not away.log_text("x", "config.yaml")
    assert not finish_run(away, "FINISHED", timeout_s=0.2)
    assert points(here, "train/loss") == [(1, 1.0)]
    with Tracker(tmp_path, here) as tracker:
        tracker.log(101, {"train/loss": 101.0})
    assert points(here, "train/loss") == [(s, float(s)) for s in range(1, 102)]


def test_a_server_that_never_answers_does_not_hold_up_logging(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        uri = f"http://127.0.0.1:{mute.getsockname()[1]}"
        run = MlflowRun(uri=uri, run_id="0" * 32, run_folder=str(tmp_path))
        tracker = Tracker(tmp_path, run)
        for step in range(1, 3001):
            tracker.log(step, {"train/loss": 1.0})
        assert not tracker.close(timeout_s=0.2)


def test_what_a_killed_worker_left_is_sent_by_the_driver(
    config: TrackConfig, tmp_path: Path
) -> None:
    run = opened(config, tmp_path)
    code = (
        "import os, signal, sys; from xtdist.track.records import MetricLog, FILE\n"
        "log = MetricLog(sys.argv[1])\n"
        "for step in range(1, 51): log.append(step, {'train/loss': 2.0})\n"
        "open(sys.argv[1] + '/' + FILE, 'a').write('{\"step\": 51, \"ti')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert finish_run(run, "FAILED", timeout_s=60)
    assert points(run, "train/loss") == [(s, 2.0) for s in range(1, 51)]


def test_a_metric_that_mlflow_refuses_does_not_hold_up_the_others(
    config: TrackConfig, tmp_path: Path
) -> None:
    run = opened(config, tmp_path)
    with Tracker(tmp_path, run) as tracker:
        tracker.log(1, {"train/loss": 1.0, "not$allowed": 2.0})
        tracker.log(2, {"train/loss": 3.0})
        assert tracker.flush(60)
    assert points(run, "train/loss") == [(1, 1.0), (2, 3.0)]


@pytest.mark.parametrize("cursor", ["", "{", "[]", '{"run_id": "other", "offset_bytes": 9}'])
def test_a_cursor_that_is_damaged_or_of_another_run_means_send_all(
    config: TrackConfig, tmp_path: Path, cursor: str
) -> None:
    run = opened(config, tmp_path)
    log = MetricLog(tmp_path)
    log.append(1, {"train/loss": 1.0})
    (tmp_path / CURSOR_FILE).write_text(cursor)
    assert MlflowWriter(run).close(60)
    assert points(run, "train/loss") == [(1, 1.0)]


def test_a_new_run_needs_its_server_but_a_known_one_goes_on_without(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    config = TrackConfig(uri=uri)
    with pytest.raises(ResourceError, match=r"track\.uri: MLflow at http://127.*start the server"):
        open_run(config, run_folder=tmp_path, name="small", params={})
    (tmp_path / RUN_FILE).write_text(json.dumps({"uri": uri, "run_id": "f" * 32}))
    assert opened(config, tmp_path).run_id == "f" * 32


def test_mlflow_can_be_left_out(tmp_path: Path) -> None:
    assert open_run(TrackConfig(mlflow=False), run_folder=tmp_path, name="a", params={}) is None
    with Tracker(tmp_path, None) as tracker:
        tracker.log(1, {"train/loss": 1.0})
        assert tracker.flush()
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"uri": "localhost:5000"}, "give http://host:port"),
        ({"uri": "file:///tmp/mlruns"}, "give http://host:port"),
        ({"uri": "sqlite:///"}, "give http://host:port"),
        ({"uri": "https://me:secret@host"}, "MLFLOW_TRACKING_PASSWORD"),
        ({"experiment": " "}, "empty name"),
        ({"url": "http://host"}, "did you mean 'uri'"),
    ],
)
def test_a_config_that_can_not_work_is_refused(plain: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        from_mapping(TrackConfig, plain)
    assert "secret" not in str(error.value)


def test_an_override_is_not_repeated_with_its_password(tmp_path: Path) -> None:
    @configclass
    class Run:
        track: TrackConfig = TrackConfig()

    path = tmp_path / "run.yaml"
    path.write_text("track: {experiment: e}\n")
    with pytest.raises(ConfigError, match="://…@host") as error:
        load(Run, path, ["track.uri=https://me:secret@host"])
    assert "secret" not in str(error.value)
    for key in ("track.uri", "track.urj"):
        with pytest.raises(ConfigError, match="user=me&Password=…") as error:
            load(Run, path, [f"{key}=postgresql:///db?user=me&Password=secret"])
        assert "secret" not in str(error.value)


def test_a_name_that_mlflow_can_not_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without quotes"):
        open_run(TrackConfig(), run_folder=tmp_path, name="it's", params={})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator["Server"]:
    server = Server(tmp_path / "server")
    server.start()
    yield server
    server.stop()


class Server:
    """A real MLflow server that can go away and come back at the same address."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, cwd=self.folder, start_new_session=True, **quiet)
        while self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError("the MLflow server ended")

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.mark.long
def test_a_real_server_that_dies_and_comes_back_gets_every_point(
    server: Server, tmp_path: Path
) -> None:
    config = TrackConfig(uri=server.uri)
    run = opened(config, tmp_path / "run", lr=1)
    tracker = Tracker(tmp_path / "run", run)
    tracker.log(1, {"train/loss": 1.0})
    assert tracker.flush(60)
    server.stop()
    tracker.log(2, {"train/loss": 2.0})
    assert not tracker.flush(1)
    assert opened(config, tmp_path / "run", lr=1) == run
    server.start()
    assert tracker.flush(60)
    assert tracker.close(60)
    assert run.log_text("a: 1", "config.yaml")
    assert finish_run(run, "FINISHED", timeout_s=60)
    assert points(run, "train/loss") == [(1, 1.0), (2, 2.0)]
    assert MlflowClient(run.uri).get_run(run.run_id).info.status == "FINISHED"
