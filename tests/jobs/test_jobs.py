"""Every config in jobs/configs and every script in jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from xtdist.cli.main import VERBS
from xtdist.config import from_mapping, load
from xtdist.data import PrepareConfig
from xtdist.launch.sweep.draw import trials_of
from xtdist.launch.sweep.spec import SweepSpec
from xtdist.objective.config import AutoregressiveConfig
from xtdist.serve.config import AppConfig
from xtdist.train import RunSpec, fit_to_data

JOBS = Path(__file__).resolve().parents[2] / "jobs"
CONFIGS = sorted(JOBS.glob("configs/*.yaml"))
SCRIPTS = sorted(JOBS.glob("*.py"))
by_name = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)


def kind(path: Path) -> str:
    return path.stem.split("_")[0]


RUNS = [p for p in CONFIGS if kind(p) not in ("prepare", "serve", "sweep")]


def test_there_are_configs_of_every_kind():
    assert {"prepare", "serve", "sweep"} < {kind(p) for p in CONFIGS}
    kinds = {load(RunSpec, p).config.objective.kind for p in RUNS}
    assert kinds == {"autoregressive", "nonautoregressive"}
    assert not list(JOBS.glob("configs/*.yml"))


@by_name
def test_a_config_starts_by_saying_what_it_is(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20


@by_name
def test_a_config_is_what_its_name_says(path):
    match kind(path):
        case "prepare":
            load(PrepareConfig, path)
        case "serve":
            check_serve(yaml.safe_load(path.read_text()))
        case "sweep":
            check_sweep(load(SweepSpec, path).config)
        case _:
            check_run(load(RunSpec, path).config)


def check_run(spec: RunSpec) -> None:
    """It also fits the data that it names, as far as that can be said without the data."""
    fitted = fit_to_data(spec, vocab_size=4096)
    assert fitted.model.causal == isinstance(spec.objective, AutoregressiveConfig)
    made = {load(PrepareConfig, p).config.output for p in CONFIGS if kind(p) == "prepare"}
    assert set(spec.data.sources.values()) <= made


def check_sweep(sweep: SweepSpec) -> None:
    """All its runs can be, as far as that can be said without the data."""
    assert JOBS.parent / sweep.base in RUNS
    sweep = replace(sweep, base=str(JOBS.parent / sweep.base))
    for trial in trials_of(sweep, "/tmp"):
        check_run(trial.spec)


def check_serve(tree: dict[str, Any]) -> None:
    """Ray reads the outer part, we the arguments of our application."""
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(tree)
    assert schema.http_options.host == "127.0.0.1"
    (application,) = schema.applications
    assert application.import_path == "xtdist.serve.app:build"
    config = from_mapping(AppConfig, application.args)
    runs = {f"{spec.output}/{spec.name}" for spec in (load(RunSpec, p).config for p in RUNS)}
    here = {m.weights for m in config.models if not m.weights.startswith("s3://")}
    assert here <= runs


def test_there_is_a_script_for_every_stage():
    stages = {"prepare", "train", "evaluate", "generate", "serve", "sweep", "doctor"}
    assert {p.stem for p in SCRIPTS} == stages
    assert {p.stem for p in SCRIPTS} <= set(VERBS)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_a_script_is_short(path):
    assert len(path.read_text().splitlines()) <= 40


@pytest.fixture(scope="module")
def helped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.Popen[str]]:
    """All scripts started at once with --help, from a folder that is not the source tree."""
    folder = tmp_path_factory.mktemp("elsewhere")
    env = {**os.environ, "PYTHONPATH": str(JOBS.parent)}
    return {
        path.stem: subprocess.Popen(
            [sys.executable, str(path), "--help"],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for path in SCRIPTS
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_a_script_helps(path, helped):
    out, err = helped[path.stem].communicate(timeout=120)
    assert helped[path.stem].returncode == 0, err
    assert out.startswith(f"usage: xtdist {path.stem} ")
    assert VERBS[path.stem].split(":")[0] in " ".join(out.split())
