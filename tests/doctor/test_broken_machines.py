"""States that are really broken, as far as they can be broken here, and what the doctor says."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from xtdist.cli.main import main
from xtdist.config import ConfigError, load
from xtdist.data.storage.config import CacheConfig
from xtdist.doctor import tracking
from xtdist.doctor.collective import Rank, free_port, run_rank
from xtdist.doctor.doors import jobs_without_token, listens_everywhere
from xtdist.doctor.limited import limited, output_of
from xtdist.doctor.machine import judge_disk, read_cpus, read_disk, read_memory
from xtdist.doctor.storage import Place, judge_place, remove_mark, seen_marks, try_place
from xtdist.doctor.surroundings import judge_sessions, judge_token, judge_variables
from xtdist.doctor.surroundings import read_surroundings as look
from xtdist.doctor.target import target_of
from xtdist.doctor.tracking import judge_tracking, read_tracking
from xtdist.doctor.versions import judge_versions, read_versions, wanted_versions
from xtdist.track.config import TrackConfig
from xtdist.train.spec import RunSpec

ROOT = Path(__file__).parents[2]
SECRET = "hunter2-never-shown"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)])
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    with open(disk / "fill", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


class Server(HTTPServer):
    """Answers ``status`` to everything; keeps the requests' headers."""

    status = 200
    answer = b'{"experiments": []}'
    location: str | None = None
    drip_s = 0.0

    def __init__(self) -> None:
        self.seen: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.seen.append(self.headers.get("Authorization"))
                self.send_response(server.status)
                if server.location is not None:
                    self.send_header("Location", server.location)
                self.end_headers()
                with contextlib.suppress(OSError):
                    for byte in server.answer:
                        time.sleep(server.drip_s)
                        self.wfile.write(bytes([byte]))

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_folder_that_nobody_can_write() -> None:
    place = Place("output", "/proc/xtdist/runs", write=True)
    found = judge_place(try_place(place, mark="m", cache=CacheConfig()))
    assert (found.level, found.check) == ("red", "output")
    assert "chown" in str(found.fix)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    place = Place("output", str(tmp_path / "runs"), write=True)
    assert judge_place(try_place(place, mark="m", cache=CacheConfig())).level == "red"


def test_a_full_disk(full_disk: Path) -> None:
    assert judge_disk(read_disk("output", str(full_disk / "runs"))).level == "red"
    place = Place("output", str(full_disk), write=True)
    facts = try_place(place, mark="m", cache=CacheConfig())
    assert judge_place(facts).level == "red"
    assert "No space left" in str(facts.error)


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    place = Place("data.path", str(tmp_path / "none"), write=False)
    found = judge_place(try_place(place, mark="m", cache=CacheConfig()))
    assert (found.level, "data verify" in str(found.fix)) == ("red", True)


def test_a_good_folder_keeps_nothing_of_the_probe_and_shows_others_marks(tmp_path: Path) -> None:
    place = Place("output", str(tmp_path / "a" / "b"), write=True)
    facts = try_place(place, mark="m1", cache=CacheConfig())
    assert (facts.error, facts.at) == (None, str(tmp_path))
    assert seen_marks(str(tmp_path), ("m1", "m2")) == ("m1",)
    remove_mark(str(tmp_path), "m1")
    assert list(tmp_path.iterdir()) == []


def test_another_version_than_the_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "ray-2.9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.9.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (found,) = judge_versions(read_versions(), wanted_versions())
    assert (found.level, "ray 2.9.0" in found.what) == ("red", True)
    assert "pip install" in str(found.fix)


def test_mlflow_that_is_down_and_one_that_refuses(server: Server) -> None:
    down = read_tracking(f"http://127.0.0.1:{free_port()}", {}, write=True)
    assert judge_tracking(down, user=False)[0].level == "red"
    env = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": SECRET}
    server.status = 401
    refused = read_tracking(f"http://{server.address}", env, write=True)
    (found,) = judge_tracking(refused, user=True)
    assert (found.level, "401" in found.what) == ("red", True)
    assert SECRET not in repr((refused, found))
    assert str(server.seen[0]).startswith("Basic ")
    inside = read_tracking(f"http://me:{SECRET}@{server.address}", {}, write=False)
    assert SECRET not in repr((inside, judge_tracking(inside, user=False)))
    assert server.seen[-1] == server.seen[0]


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"null", b"", b'{"experiments": 3}', b"7"])
def test_something_that_is_not_mlflow(answer: bytes, server: Server) -> None:
    server.answer = answer
    found = judge_tracking(read_tracking(f"http://{server.address}", {}, write=True), user=False)
    assert found[0].level == "red"


def test_an_mlflow_that_never_ends_its_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "WHOLE_S", 0.3)
    server.answer, server.drip_s = b" " * 20, 0.1
    facts = read_tracking(f"http://{server.address}", {}, write=False)
    assert "no answer in 0.3 s" in str(facts.error)


def test_the_password_does_not_follow_a_redirection(server: Server) -> None:
    with Server() as other:
        threading.Thread(target=other.serve_forever).start()
        server.status, server.location = 302, f"http://{other.address}/"
        facts = read_tracking(f"http://me:{SECRET}@{server.address}", {}, write=False)
        other.shutdown()
    assert (facts.error, other.seen) == ("HTTP 302", [])


@pytest.mark.parametrize("uri", ["http://[::1", "http://h:abc", "http://a b/"])
def test_what_is_no_address(uri: str) -> None:
    found = judge_tracking(read_tracking(uri, {}, write=False), user=False)
    assert found[0].level == "red"
    with pytest.raises(ConfigError, match="track"):
        TrackConfig(uri=uri)


def test_a_database_is_a_place_to_write(tmp_path: Path) -> None:
    spec = load(RunSpec, ROOT / "jobs/configs/demo_ar.yaml", ["track.uri=sqlite:////proc/x.db"])
    places = {place.key: place for place in target_of(spec.config).places}
    facts = try_place(places["track.uri"], mark="m", cache=CacheConfig())
    assert judge_place(facts).level == "red"


def test_a_job_server_that_asks_for_no_token(server: Server) -> None:
    assert jobs_without_token(server.address) == 200
    server.status = 401
    assert jobs_without_token(server.address) == 401
    assert jobs_without_token(f"127.0.0.1:{free_port()}") is None
    assert listens_everywhere(int(server.address.rpartition(":")[2])) is False


def test_a_port_that_listens_everywhere() -> None:
    with HTTPServer(("0.0.0.0", 0), BaseHTTPRequestHandler) as everywhere:
        assert listens_everywhere(everywhere.server_address[1]) is True
    assert listens_everywhere(free_port()) is None


def test_what_an_earlier_cluster_left(tmp_path: Path) -> None:
    ray = tmp_path / "ray"
    ray.mkdir()
    (ray / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    assert judge_sessions(look({}, temp=ray)).level == "amber"
    dead = {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    assert judge_variables(look(dead, temp=ray)).level == "red"
    found = judge_variables(look({"RAY_gcs_x": SECRET}, temp=ray))
    assert (found.level, SECRET in found.what) == ("amber", False)


def test_a_token_that_others_can_read(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(SECRET)
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    token.chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if not folder.stat().st_mode & 0o001:
            break
    else:
        assert judge_token(look(env)).level == "red"
    tmp_path.chmod(0o700)  # nobody gets to it
    assert judge_token(look(env)).level == "green"
    token.unlink()
    assert judge_token(look(env)).level == "red"


def test_a_containers_limits(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n")
    assert read_memory(tmp_path) == (64e6 * 1024, 32e6 * 1024)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, text in {
        "memory.max": "1000",
        "memory.current": "990",
        "cpu.max": "50000 100000",
    }.items():
        (group / name).write_text(text)
    assert read_memory(tmp_path) == (1000, 990)
    assert read_cpus(tmp_path) == 0.5


def test_what_never_comes_back_is_left_behind() -> None:
    with pytest.raises(TimeoutError):
        limited(threading.Event().wait, seconds=0.05)
    with pytest.raises(ZeroDivisionError):
        limited(lambda: 1 // 0, seconds=5)
    assert output_of(["sleep", "60"], seconds=0.05) is None
    assert output_of(["/no/such/program"], seconds=5) is None
    assert output_of(["echo", "yes"], seconds=5) == "yes\n"


def test_a_rank_whose_peer_is_not_there_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtdist.doctor.collective.LIMIT_S", 0.5)
    assert run_rank(Rank(1, 2, "127.0.0.1", free_port()), os.environ) is None


def test_the_command_says_what_is_wrong_with_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum and torch's view of GPUs are left out: each takes seconds."""
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("xtdist.doctor.gpus.output_of", lambda *_, **__: None)
    monkeypatch.setattr(
        "xtdist.doctor.examine.reduce_here", lambda world, gpus: {"rank 0": True, "rank 1": True}
    )
    config = tmp_path / "run.yaml"
    config.write_text(
        f"name: x\noutput: /proc/xtdist\ndata: {{path: {tmp_path}/none, seq_len: 8}}\n"
        "model: {dim: 16, depth: 1, heads: 1}\nloop: {steps: 2}\nworkers: {count: 4096}\n"
        "batch: {tokens_per_step: 32768}\ntrack: {uri: 'http://127.0.0.1:9'}\n"
    )
    assert main(["doctor", str(config), "--json"]) == 1
    tree = json.loads(capsys.readouterr().out)
    reds = {f["check"] for f in tree["findings"] if f["level"] == "red"}
    assert {"output", "data.path", "mlflow", "room"} <= reds
    assert all(f["fix"] for f in tree["findings"] if f["level"] == "red")
    config.write_text("name: x\n")
    assert main(["doctor", str(config)]) == 2
