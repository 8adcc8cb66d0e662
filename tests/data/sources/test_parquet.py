"""Parquet files written by pyarrow and pandas, read as documents."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from readings import documents, in_units, texts

from xtdist.config import DataError
from xtdist.data import ParquetSource
from xtdist.data.sources import inputs, plan_units, read_unit

TEXTS = ["one", "", "naïve 東京 😀", "a\0b", "\ufeffmark", "line\r\n", "x" * 10_000]


def write(path: Path, found: list, *, kind: pa.DataType | None = None, **options: object) -> None:  # type: ignore[type-arg]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": list(range(len(found))), "text": pa.array(found, kind)})
    parquet.write_table(table, path, **options)


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.lists(st.text(max_size=9), max_size=30), min_size=1, max_size=3),
    group_rows=st.integers(1, 12),
    unit_bytes=st.integers(1, 400),
)
def test_units_of_any_size_hold_each_row_once_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[str]],
    group_rows: int,
    unit_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("files")
    for i, found in enumerate(files):
        write(folder / f"{i}.parquet", found, kind=pa.string(), row_group_size=group_rows)
    expected = [
        (f"{i}.parquet:{row}", t) for i, found in enumerate(files) for row, t in enumerate(found)
    ]
    found = in_units(ParquetSource(path=str(folder)), unit_bytes)
    assert [tuple(d) for d in found] == expected


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_every_kind_of_text_column_is_read(
    tmp_path: Path, kind: pa.DataType, compression: str
) -> None:
    write(tmp_path / "a.parquet", TEXTS * 3, kind=pa.string(), compression=compression)
    table = parquet.read_table(tmp_path / "a.parquet")
    given = TEXTS * 3 if "string" in str(kind) else [t.encode() for t in TEXTS * 3]
    table = table.set_column(1, "text", pa.array(given, kind))
    parquet.write_table(table, tmp_path / "a.parquet", compression=compression, row_group_size=5)
    assert texts(ParquetSource(path=str(tmp_path))) == TEXTS * 3


def test_what_pandas_writes_is_read_with_its_names_and_nulls(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a.b": ["x", None, "z"], "n": [1, 2, 3]}, index=["p", "q", "r"])
    frame.to_parquet(tmp_path / "a.parquet")
    source = ParquetSource(path=str(tmp_path / "a.parquet"), field="a.b", bad_documents="skip")
    assert [tuple(d) for d in documents(source)] == [
        ("a.parquet:0", "x"),
        ("a.parquet:1", None),
        ("a.parquet:2", "z"),
    ]


def test_files_come_in_name_order_and_small_ones_share_a_unit(tmp_path: Path) -> None:
    for name in ("b.parquet", "a/2.parquet", "a/10.parquet"):
        write(tmp_path / name, [f"{name} {row}" for row in range(4)], row_group_size=2)
    write(tmp_path / "empty.parquet", [], kind=pa.string())
    source = ParquetSource(path=str(tmp_path))
    names = ["a/10.parquet", "a/2.parquet", "b.parquet", "empty.parquet"]
    assert [i.name for i in inputs(source)] == names
    assert texts(source) == [f"{name} {row}" for name in names[:3] for row in range(4)]
    (unit,) = plan_units(source, 2**20)
    assert [(p.file, p.start, p.stop) for p in unit.parts] == [(name, 0, 2) for name in names[:3]]
    assert len(plan_units(source, 1)) == 6  # row groups


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([b"x", None, b"y"], "the text is null"),
        ([b"x", b"ab\xff", b"y"], r"not UTF-8 text \(byte 2"),
    ],
)
def test_a_bad_row_is_named_or_skipped(tmp_path: Path, values: list, problem: str) -> None:  # type: ignore[type-arg]
    write(tmp_path / "a.parquet", [b"first", *values], kind=pa.binary(), row_group_size=2)
    with pytest.raises(DataError, match=rf"a\.parquet, row 2: {problem}.*skip"):
        in_units(ParquetSource(path=str(tmp_path)), 1)
    found = in_units(ParquetSource(path=str(tmp_path), bad_documents="skip"), 1)
    assert [d.text for d in found] == ["first", "x", None, "y"]


def test_a_string_column_that_holds_other_bytes_is_named_not_trusted(tmp_path: Path) -> None:
    raw = pa.array([b"x", b"\xff"], pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 2, raw.buffers())})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 1: not UTF-8 text \(byte 0\)"):
        texts(ParquetSource(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["x"], "n": [1]}, r"no column 'text'; set source\.field .*: 'body'$"),
        ({"n": [1]}, r"no column 'text'.*\(there is none\)"),
        ({"text": [1]}, r"column 'text' is int64; set source\.field"),
        ({"text": [["x"]]}, r"column 'text' is list.*; set source\.field"),
        ({"text": [{"a": "x"}]}, r"column 'text' is struct.*; set source\.field"),
    ],
)
def test_a_column_that_is_missing_or_no_text_is_refused_when_planned(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    write(tmp_path / "a.parquet", ["fine"])
    parquet.write_table(pa.table(columns), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: " + message):
        plan_units(ParquetSource(path=str(tmp_path)), 2**20)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="2 columns are named 'text'"):
        plan_units(ParquetSource(path=str(tmp_path)), 2**20)


@pytest.mark.parametrize("damage", ["empty", "short", "cut", "other"])
def test_a_file_that_is_no_parquet_is_named_whatever_the_policy(
    tmp_path: Path, damage: str
) -> None:
    write(tmp_path / "a.parquet", TEXTS)
    raw = (tmp_path / "a.parquet").read_bytes()
    damaged = {"empty": b"", "short": b"PAR1", "cut": raw[:-9], "other": b'{"text": "x"}\n' * 99}
    (tmp_path / "a.parquet").write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"a\.parquet: can't be read \(.*restore it"):
        texts(ParquetSource(path=str(tmp_path), bad_documents="skip"))


def test_damaged_pages_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    noise = random.Random(0)
    found = [noise.randbytes(400).hex() for _ in range(99)]
    write(tmp_path / "a.parquet", found, compression="zstd")
    raw = bytearray((tmp_path / "a.parquet").read_bytes())
    raw[2000:2400] = noise.randbytes(400)
    (tmp_path / "a.parquet").write_bytes(raw)
    with pytest.raises(DataError, match=r"a\.parquet: can't be read"):
        texts(ParquetSource(path=str(tmp_path)))


def test_a_file_that_lost_row_groups_after_planning_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", TEXTS, row_group_size=2)
    source = ParquetSource(path=str(tmp_path))
    units = plan_units(source, 1)
    write(tmp_path / "a.parquet", TEXTS, row_group_size=5)
    with pytest.raises(DataError, match=r"a\.parquet: the text changed"):
        list(read_unit(source, units[-1]))


def test_a_row_over_the_limit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtdist.data.sources.tables.MAX_DOCUMENT_BYTES", 5)
    write(tmp_path / "a.parquet", ["12345", "123456"])
    with pytest.raises(DataError, match=r"a\.parquet, row 1: one document of .*split it"):
        texts(ParquetSource(path=str(tmp_path), bad_documents="skip"))
