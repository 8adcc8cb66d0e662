"""Shards are plain Arrow: other libraries read them as they are, and find the same tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest

from tests.data.handmade import doc_id, random_documents, write_dataset
from xtdist.data import TokenDataset

datasets = pytest.importorskip("datasets")
polars = pytest.importorskip("polars")

DOCUMENTS = random_documents([7, 1, 300, 45, 2, 90, 33])


@pytest.fixture(params=["uint16", "uint32"])
def made(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write_dataset(tmp_path / "d", shard_tokens=100, dtype=request.param, train=DOCUMENTS)


def shards(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.glob("train-*.arrow"))


def expected() -> tuple[list[list[int]], list[bytes]]:
    return [d.tolist() for d in DOCUMENTS], [doc_id("train", i) for i in range(len(DOCUMENTS))]


def test_pyarrow_reads_the_shards(made: Path) -> None:
    table = pa.dataset.dataset(shards(made), format="ipc").to_table()
    assert table.schema.field("tokens").type.value_type == TokenDataset.open(made).manifest.dtype
    assert (table["tokens"].to_pylist(), table["doc_id"].to_pylist()) == expected()


def test_hugging_face_datasets_reads_the_shards(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    loaded = datasets.load_dataset(
        "arrow", data_files=shards(made), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert (loaded["tokens"][:], loaded["doc_id"][:]) == expected()
    assert loaded.features["tokens"].feature.dtype == TokenDataset.open(made).manifest.dtype


def test_polars_reads_the_shards(made: Path) -> None:
    frame = polars.concat([polars.read_ipc(path) for path in shards(made)])
    kind = polars.UInt16 if TokenDataset.open(made).manifest.dtype == "uint16" else polars.UInt32
    assert frame.schema["tokens"] == polars.List(kind)
    assert (frame["tokens"].to_list(), frame["doc_id"].to_list()) == expected()


def test_a_built_document_is_named_by_the_hash_of_its_text(built: Path) -> None:
    ds = TokenDataset.open(built, "valid")
    texts = [ds.tokenizer.decode(d[:-1]) for d in ds.documents()]
    ids = [hashlib.sha256(text.encode()).digest()[:16] for text in texts]
    assert ds.doc_ids(np.arange(ds.num_documents)) == ids
