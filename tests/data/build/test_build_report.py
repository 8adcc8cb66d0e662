"""What a dataset's folder says about how it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtdist.data import PrepareConfig, TokenDataset, prepare, read_manifest
from xtdist.data.build.lengths import bin_edges, count_lengths

Make = Callable[..., PrepareConfig]


def test_the_report_says_what_the_shards_hold(built_of_units: Path, lines: Path) -> None:
    report = json.loads((built_of_units / "report.json").read_text())
    manifest = read_manifest(built_of_units)
    assert report["dataset_id"] == manifest.dataset_id
    lengths = []
    for split in ("train", "valid"):
        ds = TokenDataset.open(built_of_units, split)
        said = report["splits"][split]
        assert said["documents"] == ds.num_documents
        assert said["tokens"] == ds.total_tokens
        assert said["bytes_per_token"] == pytest.approx(ds.text_bytes / ds.total_tokens, abs=1e-4)
        lengths += [len(tokens) for tokens in ds.documents()]
    for row in report["document_tokens"]:
        held = [n for n in lengths if row["from"] - 1e-3 <= n < row["below"] - 1e-3]
        assert row["documents"] == len(held)
    assert report["left_out"]["duplicates"] == len(lines.read_text().splitlines()) - 120
    settings = json.dumps(report["settings"], sort_keys=True).encode()
    assert hashlib.sha256(settings).hexdigest() == manifest.build.settings_sha256


def test_inputs_are_named_with_size_and_digest(
    built_of_units: Path, built: Path, lines: Path, corpus: Path
) -> None:
    for folder, root, paths in (
        (built_of_units, lines.parent, [lines]),
        (built, corpus, sorted(corpus.rglob("*.txt"))),
    ):
        said = [json.loads(line) for line in (folder / "inputs.jsonl").open()]
        assert said == [
            {
                "name": path.relative_to(root).as_posix(),
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in paths
        ]


def test_the_lengths_are_drawn(built_of_units: Path) -> None:
    from matplotlib.image import imread

    picture = imread(built_of_units / "lengths.png")
    assert picture.shape[0] > 300
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 2


@given(st.lists(st.integers(1, 2**31 - 1), max_size=50))
def test_every_length_is_counted_in_the_bin_that_holds_it(lengths: list[int]) -> None:
    counts = count_lengths(np.array(lengths, np.int64))
    edges = bin_edges()
    assert edges[0] == 1
    for i, count in enumerate(counts):
        assert count == sum(edges[i] <= n < edges[i + 1] for n in lengths)


def test_side_files_do_not_change_the_dataset_and_do_not_stop_a_rebuild(
    settings: Make, dataset: Path
) -> None:
    names = {p.name for p in dataset.iterdir()}
    assert {"report.json", "lengths.png", "inputs.jsonl", "manifest.json"} < names
    report = prepare(settings(dataset, shard_tokens=5000, replace=True))
    assert not report.reused
    assert [p.name for p in dataset.parent.iterdir() if p.name.startswith(".")] == []
