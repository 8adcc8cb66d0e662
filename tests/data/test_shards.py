"""Shards as written, and that nothing else passes for one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.data.handmade import doc_id, forge_shard, random_documents, write_dataset, write_shards
from xtdist.config import DataError
from xtdist.data import TokenDataset, byte_tokenizer
from xtdist.data.shards import ShardWriter


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_shard_is_one_valid_batch_with_the_documents_as_rows(tmp_path: Path, dtype: str) -> None:
    documents = random_documents([5, 1, 30, 64, 2, 7, 91, 1])
    infos = write_shards(tmp_path, "train-00003", documents, shard_tokens=100, dtype=dtype)
    assert sorted(p.name for p in tmp_path.iterdir()) == [s.path for s in infos]
    assert [s.path for s in infos] == [f"train-00003-{i:05d}.arrow" for i in range(3)]
    assert [s.docs for s in infos] == [4, 3, 1]  # closed once they have 100 tokens
    rows, ids = [], []
    for info in infos:
        with pa.memory_map(str(tmp_path / info.path)) as file:
            reader = pa.ipc.open_file(file)
            assert reader.num_record_batches == 1
            batch = reader.get_batch(0)
        batch.validate(full=True)
        assert batch.schema.field("tokens").type.value_type == pa.type_for_alias(dtype)
        assert not any(field.nullable for field in batch.schema)
        assert batch.schema.metadata[b"format_version"] == b"3"
        tokens = batch.column("tokens").to_pylist()
        assert info.tokens == sum(map(len, tokens))
        assert info.max_id == max(map(max, tokens))
        assert info.text_bytes == sum(max(1, len(t) - 1) for t in tokens)
        rows += tokens
        ids += batch.column("doc_id").to_pylist()
    assert rows == [d.tolist() for d in documents]
    assert ids == [doc_id("train-00003", i) for i in range(len(documents))]


def test_equal_documents_give_equal_bytes_whatever_was_written_before(tmp_path: Path) -> None:
    small, large = random_documents([50, 60]), random_documents([900, 50, 60])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = write_shards(tmp_path / "a", "x", small, shard_tokens=100, dtype="uint16")
    sha256 = byte_tokenizer().sha256
    writer = ShardWriter(
        tmp_path / "b", "x", dtype="uint16", shard_tokens=100, tokenizer_sha256=sha256
    )
    writer.add(large[0], text_bytes=1, doc_id=bytes(16))
    for i, tokens in enumerate(small):
        writer.add(tokens, text_bytes=1, doc_id=doc_id("x", i))
    assert writer.close()[1].sha256 == one[0].sha256


def test_a_document_that_can_not_be_stored_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "x", dtype="uint16", shard_tokens=10, tokenizer_sha256="")
    with pytest.raises(DataError, match="id 65536 doesn't fit uint16"):
        writer.add(np.array([1, 65536], np.uint32), text_bytes=1, doc_id=bytes(16))
    with pytest.raises(ValueError, match="doc_id of 16 bytes"):
        writer.add(np.array([1], np.uint32), text_bytes=1, doc_id=b"short")
    with pytest.raises(ValueError, match="has tokens"):
        writer.add(np.array([], np.uint32), text_bytes=1, doc_id=bytes(16))
    assert writer.close() == ()
    assert list(tmp_path.iterdir()) == []


def arrow_file(*batches: Any) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_file(out, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return out.getvalue()


def batch_of(lists: Any, ids: Any = None, kind: Any = None) -> Any:
    kind = kind or pa.list_(pa.field("item", "uint16", nullable=False))
    columns = {"tokens": pa.array(lists, kind)}
    if ids is not None:
        columns["doc_id"] = pa.array(ids, pa.binary(16))
    return pa.record_batch(columns)


IDS = [bytes([i]) * 16 for i in range(2)]
GOOD = batch_of([[1, 2, 256], [3, 256]], IDS)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ((GOOD, GOOD), "has 2 record batches"),
        ((batch_of([[1, 2, 256], [3, 256]]),), "there is no column doc_id"),
        ((batch_of([[1, 2, 256], [3, 256]], IDS, pa.list_(pa.uint32())),), "column tokens is list"),
        ((batch_of([[1, 2, 256, 3, 256], None], IDS),), "column tokens has nulls"),
        ((batch_of([[1, 2, 256], [3, 256]], [IDS[0], None]),), "column doc_id has nulls"),
        ((batch_of([[1, 2, 256, 3, 256], []], IDS),), "offsets don't ascend"),
        ((batch_of([[1, 2, 256], [3, 256], [256]], [*IDS, IDS[0]]),), "3 documents, not 2"),
        ((batch_of([[1, 2, 256], [3, 3, 256]], IDS),), "6 tokens, not 5"),
        ((GOOD.slice(0, 1),), "1 documents, not 2"),
    ],
)
def test_a_shard_of_another_shape_is_refused(
    tmp_path: Path, batches: tuple[Any, ...], message: str
) -> None:
    folder = write_dataset(tmp_path / "d", train=random_documents([3, 2]))
    forge_shard(folder, "train", 0, arrow_file(GOOD))
    ds = TokenDataset.open(folder)
    assert ds.read(0, 5).tolist() == [1, 2, 256, 3, 256]
    forge_shard(folder, "train", 0, arrow_file(*batches))
    with pytest.raises(DataError, match=rf"train-00000\.arrow: .*{message}"):
        TokenDataset.open(folder).read(0, 1)


def test_a_file_that_is_no_arrow_file_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", train=random_documents([3, 2]))
    for raw in (b"x" * 500, b"ARROW1\0\0" + bytes(500) + b"ARROW1", b"\0"):
        forge_shard(folder, "train", 0, raw)
        with pytest.raises(DataError, match=r"train-00000\.arrow: not a readable shard"):
            TokenDataset.open(folder).read(0, 1)
