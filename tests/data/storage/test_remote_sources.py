"""Text in an object store: the same documents as from local files, also while transfers fail."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from object_store import Faults, put, uri
from pyarrow import parquet
from readings import documents

from xtdist.config import DataError
from xtdist.data import FilesSource, HfFolderSource, JsonlSource, ParquetSource
from xtdist.data.sources import (
    SourceConfig,
    input_sha256,
    inputs,
    plan_units,
    read_unit,
)

TEXTS = [f"text {i} é " + "x" * (i * 37 % 900) for i in range(400)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    root = tmp_path / "text"
    (root / "sub").mkdir(parents=True)
    lines = "".join(json.dumps({"text": t}) + "\n" for t in TEXTS)
    (root / "a.jsonl").write_text(lines)
    (root / "sub" / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for i in range(6):
        (root / "sub" / f"{i}.txt").write_text(TEXTS[i])
    parquet.write_table(pa.table({"text": TEXTS}), root / "sub" / "c.parquet", row_group_size=50)
    (root / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}], "_split": null}')
    table = pa.table({"text": TEXTS})
    with pa.OSFile(str(root / "d.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as s:
        s.write_table(table, max_chunksize=100)
    return root


def sources(path: str) -> list[SourceConfig]:
    kinds = (FilesSource, JsonlSource, ParquetSource, HfFolderSource)
    return [kind(path=path) for kind in kinds]


def upload(folder: Path, remote: Callable[[str], str]) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            put(remote(path.relative_to(folder).as_posix()), path.read_bytes())


def test_units_names_and_documents_are_those_of_local_files(
    text: Path, remote: Callable[[str], str]
) -> None:
    upload(text, remote)
    for here, there in zip(sources(str(text)), sources(remote("")), strict=True):
        assert inputs(here) == inputs(there)
        assert plan_units(here, 20_000) == (units := plan_units(there, 20_000))
        assert list(documents(here)) == [d for u in units for d in read_unit(there, u)]
        name = inputs(there)[0].name
        stored = (text / name).read_bytes()
        assert input_sha256(there, name) == hashlib.sha256(stored).hexdigest()


def test_one_remote_file_is_a_source(text: Path, remote: Callable[[str], str]) -> None:
    upload(text, remote)
    found = list(documents(JsonlSource(path=remote("sub/b.jsonl.gz"))))
    assert [d.text for d in found] == TEXTS
    assert found[0].name == "b.jsonl.gz@0"


def test_documents_are_the_same_while_a_fifth_of_the_answers_fail(
    text: Path, remote: Callable[[str], str], faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(text, remote)
    bucket_path = remote("").partition("?")[0].removeprefix("s3://bucket/")
    # No flipped bits or false lengths: stored text has no digest to tell them by. What two passes
    # of a build read must agree.
    monkeypatch.setattr(faults, "kinds", ("error", "cut"))
    faults.share = 0.2
    for kind in (JsonlSource, ParquetSource):
        source = kind(path=uri(faults.port, bucket_path))
        assert list(documents(source)) == list(documents(kind(path=str(text))))
    assert sum(faults.did.values()) > 3


def test_what_is_not_there_is_named_without_the_options_of_the_uri(
    remote: Callable[[str], str],
) -> None:
    for source in sources(remote("nothing")):
        with pytest.raises(DataError, match=r"path: s3://bucket/\w+/nothing does not exist"):
            plan_units(source, 2**20)
