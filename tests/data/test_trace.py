"""Naming the documents of any batch: what is named, put together again, is the batch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtdist.config import ConfigError
from xtdist.data import (
    ByteTokenizerConfig,
    DataConfig,
    TokenDataset,
    TracedRow,
    View,
    open_view,
    prepare,
)

SEQ_LEN = 200


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, settings: Any) -> list[Path]:
    root = tmp_path_factory.mktemp("traced")
    for name, share in (("a", 0.2), ("b", 0.6)):
        prepare(settings(root / name, tokenizer=ByteTokenizerConfig(), valid_fraction=share))
    return [root / "a", root / "b"]


def view_of(folders: list[Path], cache: Path, documents: str) -> View:
    config = DataConfig(
        corpora={n: {"path": str(p), "weight": 1} for n, p in zip("ab", folders, strict=True)},  # type: ignore[misc]
        documents=documents,  # type: ignore[arg-type]
        skip=((3, 8),),
        cache={"folder": str(cache)},  # type: ignore[arg-type]
    )
    return open_view(config, seq_len=SEQ_LEN, seed=3, global_batch=10)


def put_together(view: View, row: TracedRow) -> np.ndarray:
    """The row's tokens from the documents that it names; padding where none stands."""
    data = view.datasets[row.corpus]
    documents = list(data.documents())
    tokens = np.full(SEQ_LEN + 1, view.tokenizer.pad_id)
    column = 0
    for piece in row.pieces:
        document = documents[piece.document]
        assert piece.column == column
        assert 0 <= piece.start < piece.stop <= len(document)
        text = view.tokenizer.decode(document[:-1].tolist())
        assert piece.doc_id == hashlib.sha256(text.encode()).digest()[:16].hex()
        column += piece.stop - piece.start
        tokens[piece.column : column] = document[piece.start : piece.stop]
    return tokens


@pytest.mark.parametrize("documents", ["joined", "masked", "packed"])
@pytest.mark.parametrize("step", [0, 4, 10**6])
def test_the_documents_named_put_together_are_the_batch(
    folders: list[Path], tmp_path: Path, documents: str, step: int
) -> None:
    view = view_of(folders, tmp_path, documents)
    rows = view.trace(step).rows
    samples = view.order.samples(step)
    assert [row.row for row in rows] == list(range(10))
    assert [row.sample_id for row in rows] == samples.ids.tolist()
    assert {row.corpus for row in rows} == {"a", "b"}
    for i, row in enumerate(rows):
        windows = view.windows["ab".index(row.corpus)]
        tokens = np.empty((1, SEQ_LEN + 1), np.uint16)
        windows.fill(samples.index[i : i + 1], tokens, None)
        np.testing.assert_array_equal(put_together(view, row), tokens[0])


def test_ranks_name_their_rows_of_the_batch(folders: list[Path], tmp_path: Path) -> None:
    view = view_of(folders, tmp_path, "joined")
    for world in (1, 3, 4, 16):
        parts = [view.trace(7, rank, world).rows for rank in range(world)]
        assert tuple(row for part in parts for row in part) == view.trace(7).rows
    with pytest.raises(ConfigError, match="rank 2"):
        view.trace(7, 2, 2)


def test_a_trace_never_changes_between_versions(folders: list[Path], tmp_path: Path) -> None:
    """Of a step behind a skipped range, as plain data."""
    view = view_of(folders, tmp_path, "joined")
    row = view.trace(5).rows[1]
    plain = json.loads(json.dumps(dataclasses.asdict(row)))
    first = plain["pieces"][0]
    document = TokenDataset.open(folders["ab".index(row.corpus)])
    start, _ = document.document_bounds(np.array([first["document"]]))
    assert int(start[0]) + first["start"] == row.window * SEQ_LEN
    assert (plain["row"], plain["sample_id"]) == (1, 101)  # step 5 reads the data of step 10
    assert (plain["corpus"], plain["window"]) == GOLDEN


GOLDEN = ("b", 76)
