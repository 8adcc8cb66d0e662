"""xtdist config, on runs and on datasets to prepare."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2] / "jobs" / "configs"


def test_a_dataset_to_prepare_is_shown_as_a_run_is(xtdist):
    ended = xtdist("config", ROOT / "prepare_bytes.yaml", "valid_fraction=0.25", "--all")
    assert ended.code == 0
    lines = {line.split(":")[0]: line for line in ended.out.splitlines()}
    assert "0.25" in lines["valid_fraction"]
    assert "override" in lines["valid_fraction"]
    assert lines["unit_bytes"].endswith("# default")


def test_a_default_that_is_empty_is_not_shown(xtdist):
    out = xtdist("config", ROOT / "demo_ar.yaml").out
    assert "data.path" in out
    assert "data.corpora" not in out
