"""The corpus as several units of work, and the dataset that is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from xtdist.data import JsonlSource, LocalRunner, PrepareConfig, prepare

Make = Callable[..., PrepareConfig]


@pytest.fixture(scope="session")
def lines(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as one file of JSON lines, with some documents twice."""
    texts = [p.read_text("utf-8") for p in sorted(corpus.rglob("*.txt"))]
    path = tmp_path_factory.mktemp("lines") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in [*texts, *texts[::9]]))
    return path


@pytest.fixture(scope="session")
def units(settings: Make, lines: Path) -> Make:
    """Makes a config of about eight units."""

    def make(output: Path, **changes: object) -> PrepareConfig:
        fields = {
            "source": JsonlSource(path=str(lines)),
            "unit_bytes": 16_000,
            "runner": LocalRunner(workers=1),
        }
        return settings(output, **{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def built_of_units(tmp_path_factory: pytest.TempPathFactory, units: Make) -> Path:
    """A finished dataset of several units. Read only."""
    folder = tmp_path_factory.mktemp("built") / "units"
    prepare(units(folder))
    return folder
