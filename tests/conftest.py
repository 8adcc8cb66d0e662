"""How the suite is spread over several processes (``pytest -n 2``), and what its files share."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest

# Bits are compared: sums in an order that depends on the number of threads are not the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay together, because they share what its fixtures made. All files that start
    a Ray cluster stay together too: two that start at once may take each other's ports."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if starts_ray(file) else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without anything in it, to copy: making its tables takes seconds."""
    from xtdist.track.mlflow import connect

    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    connect(f"sqlite:///{file}").search_experiments()
    return file


@functools.cache
def starts_ray(file: str) -> bool:
    return "mark.ray" in (ROOT / file).read_text(encoding="utf-8")
