"""What is handed to ``ray job submit``, and how its end is told."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import pytest

from xtdist.cli.main import main
from xtdist.launch import submit as module
from xtdist.launch.submit import ADDRESS, ROOT, submit


@dataclass
class FakeRay:
    """Records the command that would be run; a job ends as ``status`` and ``code`` say."""

    status: str = "SUCCEEDED"
    code: int | None = 0
    interrupt: bool = False
    command: tuple[str, ...] = ()
    env: dict[str, str] | None = None
    stopped: str = ""
    asked: str | None = None

    def popen(self, command: list[str], *, env: dict[str, str], **_: Any) -> FakeRay:
        self.command, self.env = tuple(command), env
        return self

    def wait(self) -> None:
        if self.interrupt and not self.stopped:
            raise KeyboardInterrupt

    def kill(self) -> None:
        pass

    def client(self, address: str) -> FakeRay:
        self.asked = os.environ.get(ADDRESS)
        return self

    def get_job_info(self, job_id: str) -> Any:
        assert job_id in self.command
        return type("Info", (), {"status": self.status, "driver_exit_code": self.code})

    def stop_job(self, job_id: str) -> None:
        self.stopped, self.status = job_id, "STOPPED"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()
    monkeypatch.setattr(module.subprocess, "Popen", ray.popen)
    monkeypatch.setattr(module, "_client", ray.client)
    return ray


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 1, 1),
        ("FAILED", -9, 1),
        ("FAILED", None, 1),
        ("STOPPED", None, 130),
        ("STOPPED", 0, 130),
    ],
)
def test_the_exit_code_is_that_of_the_job(fake, status, driver, code):
    fake.status, fake.code = status, driver
    assert submit("http://head:8265", ["python", "x.py"], name="run") == code


def test_the_address_given_counts_more_than_the_environments(fake, monkeypatch):
    """Ray itself would take the environment's."""
    monkeypatch.setenv(ADDRESS, "http://other:1")
    submit("http://head:8265", ["python", "x.py"], name="run")
    assert fake.asked == fake.env[ADDRESS] == "http://head:8265"
    assert fake.command[fake.command.index("--address") + 1] == "http://head:8265"
    assert os.environ[ADDRESS] == "http://other:1"
    monkeypatch.delenv(ADDRESS)
    submit("http://head:8265", ["python", "x.py"], name="run")
    assert ADDRESS not in os.environ


def test_ctrl_c_stops_the_job_and_waits_for_it(fake, capsys):
    fake.interrupt = True
    assert submit("http://head:8265", ["python", "x.py"], name="run") == 130
    assert fake.stopped.startswith("run-")
    assert f"stopping job {fake.stopped}" in capsys.readouterr().out
    environment = json.loads(fake.command[fake.command.index("--runtime-env-json") + 1])
    assert (
        int(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
    )  # a save takes longer than 3


def test_the_source_tree_goes_along_but_not_what_lies_in_it(fake):
    submit("http://head:8265", ["python", "x.py"], name="run")
    assert fake.command[fake.command.index("--working-dir") + 1] == str(ROOT)
    assert (ROOT / "jobs" / "train.py").is_file()
    environment = json.loads(fake.command[fake.command.index("--runtime-env-json") + 1])
    assert {"/data", "/runs", "/.venv"} <= set(environment["excludes"])
    assert all(pattern.startswith("/") for pattern in environment["excludes"])  # not xtdist/data


def test_a_job_gets_absolute_paths_and_all_other_overrides(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ROOT / "jobs" / "configs" / "demo_ar.yaml"
    words = ["loop.steps=7", "data.path=some/where", "--submit", "http://head:8265"]
    assert main(["train", str(config), *words]) == 0
    entry = fake.command[fake.command.index("--") + 1 :]
    assert entry[:4] == ("python", "jobs/train.py", "jobs/configs/demo_ar.yaml", "loop.steps=7")
    assert set(entry[4:]) == {f"output={tmp_path}/runs", f"data.path={tmp_path}/some/where"}


def test_a_config_and_an_output_outside_of_the_tree_stay_where_they_are(fake, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text((ROOT / "jobs" / "configs" / "demo_ar.yaml").read_text())
    main(["train", str(config), "--submit", "http://head:8265", 'output="/shared/my runs #2"'])
    entry = fake.command[fake.command.index("--") + 1 :]
    assert entry[2] == str(config)
    assert 'output="/shared/my runs #2"' in entry


def test_nobody_at_the_address_is_a_users_mistake(capsys, monkeypatch):
    monkeypatch.setenv(ADDRESS, "http://127.0.0.1:2")
    config = ROOT / "jobs" / "configs" / "demo_ar.yaml"
    assert main(["train", str(config), "--submit", "http://127.0.0.1:1"]) == 2
    assert "no Ray job server at http://127.0.0.1:1" in capsys.readouterr().err
