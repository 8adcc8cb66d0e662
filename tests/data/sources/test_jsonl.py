"""JSON lines: cut anywhere, read the same; against a plain reading of the whole file."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readings import documents, in_units, json_texts, texts

from xtdist.config import DataError
from xtdist.data import JsonlSource
from xtdist.data.sources import plan_units, read_unit

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": lambda raw: pa.compress(raw, "zstd", asbytes=True),
    "bz2": bz2.compress,
}
LINE_ENDS = ("\n", "\r\n", "\n\n", " \n", "\n \t\r\n")
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """JSON lines with all that may stand between and around them."""
    raw = draw(st.sampled_from(["", "\ufeff"]))
    for text in draw(st.lists(TEXTS, max_size=12)):
        row = {"id": 1, "text": text, "more": {"text": "not this"}}
        raw += json.dumps(row, ensure_ascii=draw(st.booleans())) + draw(st.sampled_from(LINE_ENDS))
    return (raw.rstrip() if draw(st.booleans()) else raw).encode()


@settings(max_examples=200, deadline=None)
@given(contents=st.lists(files(), min_size=1, max_size=3), unit_bytes=st.integers(1, 300))
def test_units_of_any_size_hold_each_line_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], unit_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"{i}.jsonl" for i in range(len(contents))]
    for path, raw in zip(paths, contents, strict=True):
        path.write_bytes(raw)
    source = JsonlSource(path=str(folder))
    found = in_units(source, unit_bytes)
    assert [d.text for d in found] == [text for path in paths for text in json_texts(path)]
    assert found == in_units(source, 10**9)
    for name, text in found:  # the name says where the line starts
        file, at = name.split("@")
        line = (folder / file).read_bytes()[int(at) :].split(b"\n")[0]
        assert json.loads(line.decode("utf-8-sig"))["text"] == text


@settings(max_examples=30, deadline=None)
@given(raw=files(), kind=st.sampled_from(sorted(PACKERS)), cut=st.floats(0, 1))
def test_packed_lines_are_the_plain_ones_also_in_several_members(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, kind: str, cut: float
) -> None:
    folder, at = tmp_path_factory.mktemp("packed"), int(cut * len(raw))
    (folder / "plain.jsonl").write_bytes(raw)
    pack = PACKERS[kind]
    (folder / f"a.json.{kind}").write_bytes(pack(raw[:at]) + pack(raw[at:]))
    found = list(documents(JsonlSource(path=str(folder / f"a.json.{kind}"))))
    plain = list(documents(JsonlSource(path=str(folder / "plain.jsonl"))))
    assert [d.text for d in found] == json_texts(folder / "plain.jsonl")
    assert [d.name.split("@")[1] for d in found] == [d.name.split("@")[1] for d in plain]


def test_units_are_even_and_small_files_share_one(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 87}).encode() + b"\n"
    assert len(line) == 100
    (tmp_path / "a.jsonl").write_bytes(line * 95)
    (tmp_path / "b.jsonl").write_bytes(line * 3)
    (tmp_path / "c.jsonl").write_bytes(line * 3)
    units = plan_units(JsonlSource(path=str(tmp_path)), 1000)
    assert [u.bytes for u in units] == [1000] * 9 + [500 + 300, 300]
    assert [(p.file, p.start, p.stop) for p in units[9].parts] == [
        ("a.jsonl", 9000, 9500),
        ("b.jsonl", 0, 300),
    ]


def test_a_large_file_is_planned_without_reading_it(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 5000}).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(line * 8000)
    before = _bytes_read()
    units = plan_units(JsonlSource(path=str(tmp_path)), 2**23)
    assert len(units) == 5
    assert _bytes_read() - before < 3 * 2**20  # of 40 MB


def _bytes_read() -> int:
    """By this process, by the kernel's account."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_the_default_pattern_takes_every_kind_of_json_lines_and_no_other(tmp_path: Path) -> None:
    line = b'{"text": "%s"}'
    packs = {"a.jsonl": bytes, "d/b.jsonl.gz": PACKERS["gz"], "c.json.zst": PACKERS["zst"]}
    for name, pack in packs.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(pack(line % name.encode()))
    for other in ("dataset_info.json", "README.md", "a.jsonl.tmp"):
        (tmp_path / other).write_text("{")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert texts(JsonlSource(path=str(tmp_path))) == ["a.jsonl", "c.json.zst", "d/b.jsonl.gz"]


def test_files_without_a_line_give_no_units(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    assert plan_units(JsonlSource(path=str(tmp_path)), 2**20) == []


def test_another_field_and_odd_texts_are_read_as_they_are(tmp_path: Path) -> None:
    lines = [{"body": "a\0b"}, {"body": ""}, {"body": "\U0001f600 \ud83d\ude00"}, {"body": "\r\n"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    found = texts(JsonlSource(path=str(tmp_path), field="body"))
    assert found == ["a\0b", "", "😀 😀", "\r\n"]


BAD = {
    "cut": b'{"text": "x',
    "a list": b"[]",
    "a string": b'"text"',
    "a number": b"1",
    "null": b"null",
    "another field": b'{"body": "x"}',
    "a number for text": b'{"text": 5}',
    "null for text": b'{"text": null}',
    "a list for text": b'{"text": ["x"]}',
    "a lone surrogate": b'{"text": "\\ud800"}',
    "not UTF-8": b'{"text": "\xff"}',
    "a raw control character": b'{"text": "\0"}',
    "too deep": b"[" * 100_000,
    "two objects": b'{"text": "x"} {"text": "y"}',
    "a mark of UTF-8 later on": b'\xef\xbb\xbf{"text": "x"}',
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("unit_bytes", [1, 10**6])
def test_a_bad_line_is_named_or_skipped(tmp_path: Path, bad: str, unit_bytes: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n\n' + BAD[bad] + b'\n{"text": "two"}')
    with pytest.raises(DataError, match=r"a\.jsonl:3: expected a JSON object.*'text'.*skip") as e:
        in_units(JsonlSource(path=str(tmp_path)), unit_bytes)
    assert len(str(e.value)) < 500
    found = in_units(JsonlSource(path=str(path), bad_documents="skip"), unit_bytes)
    assert [tuple(d) for d in found] == [
        ("a.jsonl@0", "one"),
        ("a.jsonl@17", None),
        (f"a.jsonl@{18 + len(BAD[bad])}", "two"),
    ]


@pytest.mark.parametrize("kind", sorted(PACKERS))
def test_a_bad_line_of_a_packed_file_is_named_too(tmp_path: Path, kind: str) -> None:
    raw = b'{"text": "x"}\n' * 3000 + b"{\n"
    (tmp_path / f"a.jsonl.{kind}").write_bytes(PACKERS[kind](raw))
    with pytest.raises(DataError, match=rf"a\.jsonl\.{kind}:3001: expected"):
        texts(JsonlSource(path=str(tmp_path)))


@pytest.mark.parametrize("kind", sorted(PACKERS))
@pytest.mark.parametrize("damage", ["empty", "cut", "half", "other"])
def test_a_damaged_packed_file_is_named_whatever_the_policy(
    tmp_path: Path, kind: str, damage: str
) -> None:
    noise = random.Random(0).randbytes(20_000).hex()
    packed = PACKERS[kind](b'{"text": "%s"}\n' % noise.encode() * 9)
    damaged = {"empty": b"", "cut": packed[:-1], "half": packed[: len(packed) // 2], "other": b"{}"}
    (tmp_path / f"a.jsonl.{kind}").write_bytes(damaged[damage])
    with pytest.raises(DataError, match=rf"a\.jsonl\.{kind}: can't be read.*restore it"):
        texts(JsonlSource(path=str(tmp_path), bad_documents="skip"))


@pytest.mark.parametrize("change", ["shorter", "longer line", "other lines"])
def test_a_file_that_changes_between_plan_and_reading_is_refused(
    tmp_path: Path, change: str
) -> None:
    path, line = tmp_path / "a.jsonl", b'{"text": "abc"}\n'
    path.write_bytes(line * 10)
    source = JsonlSource(path=str(tmp_path))
    units = plan_units(source, len(line) * 4)
    other = {
        "shorter": line * 9,
        "longer line": line * 9 + line[:-1] + b" \n",
        "other lines": b'{"text": "abcd"}\n' * 10,
    }
    path.write_bytes(other[change])
    with pytest.raises(DataError, match=r"a\.jsonl: the text changed"):
        list(itertools.chain.from_iterable(read_unit(source, unit) for unit in units))


def test_a_line_over_the_limit_is_named_and_never_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtdist.data.sources.jsonl.MAX_DOCUMENT_BYTES", 100)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n' + b"y" * 101)
    with pytest.raises(DataError, match=r"a\.jsonl \(line at byte 14\): one document of over"):
        texts(JsonlSource(path=str(tmp_path), bad_documents="skip"))


def test_a_number_that_python_cannot_read_may_stand_beside_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"n": -{"7" * 5000}, "text": "as ever"}}\n')
    assert texts(JsonlSource(path=str(tmp_path))) == ["as ever"]
    (tmp_path / "a.jsonl").write_text(f'{{"text": {"7" * 5000}}}\n')
    with pytest.raises(
        DataError, match=r"a.jsonl:1: expected a JSON object with text under 'text'"
    ):
        texts(JsonlSource(path=str(tmp_path)))


def test_where_no_file_matches_the_endings_that_there_are_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file in .* matches .*; there is no file at all"):
        texts(JsonlSource(path=str(tmp_path)))
    (tmp_path / "in").mkdir()
    for name in ("in/a.json", "b.json", "c.tar.gz", "README"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"there are 2 of \*\*/\*\.json, .*set source.pattern") as e:
        texts(JsonlSource(path=str(tmp_path)))
    assert "1 of **/*.tar.gz" in str(e.value)
    assert texts(JsonlSource(path=str(tmp_path), pattern="**/*.json")) == ["a", "a"]
