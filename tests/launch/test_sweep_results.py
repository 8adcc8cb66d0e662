"""What a sweep writes down: how trials ended, the table, the plot, the best config."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from xtdist.config import CheckpointError, from_mapping, load
from xtdist.launch.sweep.draw import points_of
from xtdist.launch.sweep.records import Ended, note_end, read_ends, results_of, settle
from xtdist.launch.sweep.spec import SweepSpec
from xtdist.launch.sweep.table import text_table, write_results
from xtdist.track.records import MetricLog
from xtdist.train.spec import RunSpec

RUN: dict[str, Any] = {
    "name": "base",
    "data": {"path": "nowhere", "seq_len": 16},
    "model": {"dim": 32, "depth": 1, "heads": 4, "attention": {"dim_head": 8}},
    "batch": {"tokens_per_step": 64},
    "loop": {"steps": 40, "valid_every": 10},
}
SPACE = {
    "optim.lr": {"kind": "choice", "values": [1e-4, 1e-3, 1e-2]},
    "model.norm.kind": {"kind": "choice", "values": ["rmsnorm", "layernorm"]},
}
LOSSES = {
    0: [(10, 5.0), (20, 4.5)],
    1: [(10, 4.0), (20, 3.0), (30, 2.5), (40, 2.6)],
    2: [(10, float("nan"))],
    3: [(10, 1.0)],
    4: [(10, 4.9), (20, 2.5)],
}
STATUS = {0: "stopped", 1: "finished", 3: "failed", 4: "finished"}


@pytest.fixture
def sweep(tmp_path: Path) -> SweepSpec:
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(RUN))
    tree = {"name": "s", "base": str(base), "space": SPACE, "search": {"kind": "grid"}}
    return from_mapping(SweepSpec, tree | {"overrides": ["loop.steps=50"]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "s"
    for number, points in LOSSES.items():
        log = MetricLog(folder / f"trial-{number:03d}")
        for step, loss in points:
            log.append(step, {"train/loss": 9.0})
            log.append(step, {"eval/valid/loss": loss})
        log.close()
    for number, status in STATUS.items():
        note_end(
            folder, Ended(number=number, status=status, error="it broke" if number == 3 else "")
        )
    return folder


def test_rows_are_sorted_by_the_best_value_with_failed_and_unmeasured_ones_last(
    sweep: SweepSpec, folder: Path
) -> None:
    points = list(points_of(sweep))
    rows = results_of(sweep, points, folder)
    assert [row.number for row in rows] == [1, 4, 0, 3, 2, 5]  # equal ones by their number
    assert [(row.best, row.best_step, row.step) for row in rows[:3]] == [
        (2.5, 30, 40),
        (2.5, 20, 20),
        (4.5, 20, 20),
    ]
    assert [row.status for row in rows] == [
        *("finished", "finished", "stopped", "failed"),
        *("unfinished", "unfinished"),
    ]
    assert rows[0].values == points[1]

    higher = from_mapping(
        SweepSpec,
        {"name": "s", "base": "b", "space": SPACE, "search": {"kind": "grid"}}
        | {"lower_is_better": False},
    )
    assert [row.number for row in results_of(higher, points, folder)][:3] == [0, 4, 1]


def test_files_hold_the_table_the_picture_and_a_config_to_train(
    sweep: SweepSpec, folder: Path
) -> None:
    rows = results_of(sweep, list(points_of(sweep)), folder)
    written = {path.name: path for path in write_results(sweep, rows, rows[0], folder)}
    assert set(written) == {f"results.{e}" for e in ("json", "csv", "html", "png")} | {"best.yaml"}

    table = list(csv.DictReader(written["results.csv"].open()))
    assert [row["trial"] for row in table] == [row.name for row in rows]
    assert float(table[0]["eval/valid/loss"]) == 2.5
    assert table[0]["model.norm.kind"] == rows[0].values["model.norm.kind"]
    assert table[3]["error"] == "it broke"
    whole = json.loads(written["results.json"].read_text())
    assert whole["best"] == "trial-001"
    assert [trial["best"] for trial in whole["trials"]] == [2.5, 2.5, 4.5, 1.0, None, None]

    spec = load(RunSpec, written["best.yaml"]).config
    assert (spec.name, spec.output) == ("s-best", "runs")
    assert spec.optim.lr == rows[0].values["optim.lr"]
    assert spec.model.norm.kind == rows[0].values["model.norm.kind"]
    assert spec.loop.steps == 50
    assert written["best.yaml"].read_text().startswith("# The best of the sweep s: trial-001")

    page = written["results.html"].read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page
    assert page.count("<tr>") == 7
    from matplotlib.image import imread

    picture = imread(written["results.png"])
    assert picture.shape[1] > picture.shape[0] > 300
    assert float(picture[..., :3].std()) > 0.05

    text = text_table(sweep, rows)
    names = [word for word in text.split() if word.startswith("trial-")]
    assert names == [row.name for row in rows]


def test_a_sweep_without_any_value_still_has_its_table(sweep: SweepSpec, tmp_path: Path) -> None:
    rows = results_of(sweep, list(points_of(sweep)), tmp_path)
    written = {path.name for path in write_results(sweep, rows, None, tmp_path)}
    assert written == {"results.json", "results.csv"}


def test_another_sweep_in_the_same_folder_is_refused_and_more_trials_are_not(
    sweep: SweepSpec, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    settle(sweep, folder)
    note_end(folder, Ended(number=0, status="finished"))

    def changed(**changes: Any) -> SweepSpec:
        tree = {"name": "s", "base": sweep.base, "space": SPACE, "search": {"kind": "grid"}}
        return from_mapping(SweepSpec, {**tree, "overrides": ["loop.steps=50"], **changes})

    settle(changed(max_failed=3, max_concurrent=1), folder)
    for other in ({"seed": 5}, {"overrides": []}, {"search": {"kind": "random", "trials": 3}}):
        with pytest.raises(CheckpointError, match=rf"(?s)another sweep:\n  {next(iter(other))}: "):
            settle(changed(**other), folder)


def test_the_last_word_on_a_trial_counts_and_torn_lines_do_not(tmp_path: Path) -> None:
    note_end(tmp_path, Ended(number=1, status="failed", error="x"))
    note_end(tmp_path, Ended(number=1, status="finished"))
    note_end(tmp_path, Ended(number=0, status="stopped"))
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"number": 0, "sta')
    assert read_ends(tmp_path) == {
        0: Ended(number=0, status="stopped"),
        1: Ended(number=1, status="finished"),
    }
