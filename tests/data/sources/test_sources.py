"""Sources: what counts as a document, and what a bad one gets."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from xtdist.config import DataError
from xtdist.data import FilesSource, JsonlSource, StdlibSource
from xtdist.data.sources import documents


def test_files_come_in_name_order_with_relative_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b.md", "a/c/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(f"{name}\r\n".encode())
    found = list(documents(FilesSource(path=str(tmp_path))))
    assert [(d.name, d.text) for d in found] == [
        (name, f"{name}\r\n") for name in ("a/c/d.txt", "a/z.txt", "b.txt")
    ]
    found = list(documents(FilesSource(path=str(tmp_path), pattern="a/*.md")))
    assert [d.name for d in found] == ["a/b.md"]


def test_a_file_that_is_not_utf8_is_named_or_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ok")
    (tmp_path / "b.txt").write_bytes(b"ok\xff")
    with pytest.raises(DataError, match=r"b\.txt: not UTF-8 text \(byte 2\)"):
        list(documents(FilesSource(path=str(tmp_path))))
    found = list(documents(FilesSource(path=str(tmp_path), bad_documents="skip")))
    assert [(d.name, d.text) for d in found] == [("a.txt", "ok"), ("b.txt", None)]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("*.md", "no file"), ("../*", "leaves"), ("/etc/*", "not a usable"), ("", "not a usable")],
)
def test_a_pattern_that_finds_nothing_is_refused(
    tmp_path: Path, pattern: str, message: str
) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=message):
        list(documents(FilesSource(path=str(tmp_path), pattern=pattern)))


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    for source in (FilesSource(path=str(tmp_path / "no")), JsonlSource(path=str(tmp_path / "no"))):
        with pytest.raises(DataError, match=r"source\.path: .*/no"):
            list(documents(source))


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b'"text"', b'{"body": "x"}', b'{"text": 5}', b'{"text": "\\ud800"}', b"\xff"],
)
def test_a_bad_json_line_is_named_or_skipped(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}')
    with pytest.raises(DataError, match=r"a\.jsonl:3: expected a JSON object with text"):
        list(documents(JsonlSource(path=str(tmp_path))))
    found = list(documents(JsonlSource(path=str(path), bad_documents="skip")))
    assert [(d.name, d.text) for d in found] == [
        ("a.jsonl@0", "one"),
        ("a.jsonl@17", None),
        (f"a.jsonl@{18 + len(line)}", "two"),
    ]


def test_the_standard_library_is_its_own_source_and_no_installed_package() -> None:
    found = {d.name: d.text for d in documents(StdlibSource())}
    root = Path(sysconfig.get_path("stdlib"))
    assert found["ast.py"] == (root / "ast.py").read_bytes().decode()
    assert "json/decoder.py" in found
    assert not [n for n in found if "site-packages" in n or "dist-packages" in n]
