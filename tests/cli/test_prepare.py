"""``xtdist prepare``: what it prints and what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from xtdist.data import TokenDataset


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    for i in range(30):
        (tmp_path / "text" / f"{i}.txt").write_text(f"text number {i // 2}")
    path = tmp_path / "prepare.yaml"
    tree = {
        "output": str(tmp_path / "dataset"),
        "source": {"kind": "files", "path": str(tmp_path / "text")},
        "tokenizer": {"kind": "byte"},
        "valid_fraction": 0.3,
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def test_it_says_what_it_made_and_that_it_was_made_already(xtdist, config, tmp_path):
    first = xtdist("prepare", config)
    assert (first.code, first.err) == (0, "")
    ds = TokenDataset.open(tmp_path / "dataset")
    assert f"dataset {ds.dataset_id[:12]} in {tmp_path / 'dataset'}: made in" in first.out
    assert "left out: 15 duplicates, 0 empty, 0 unreadable; vocabulary 259" in first.out
    assert f"more in {tmp_path / 'dataset'}/report.json" in first.out
    assert "scan " in first.out
    assert "encode " in first.out
    assert "found, nothing to do" in xtdist("prepare", config).out


def test_a_dataset_is_extended_from_the_command_line(xtdist, config, tmp_path):
    assert xtdist("prepare", config).code == 0
    (tmp_path / "text" / "new.txt").write_text("something new")
    tree = yaml.safe_load(config.read_text())
    tree.pop("tokenizer", None)
    config.write_text(yaml.safe_dump(tree))
    ended = xtdist(
        "prepare", config, f"extends={tmp_path / 'dataset'}", f"output={tmp_path / 'more'}"
    )
    assert (ended.code, ended.err) == (0, "")
    assert "left out: 0 duplicates, 30 known, 0 empty" in ended.out


def test_an_unknown_runner_is_named(refused, config):
    message = refused("prepare", config, "runner={kind: slurm}")
    assert "slurm" in message
    assert "local" in message
    assert "ray" in message
