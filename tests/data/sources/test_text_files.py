"""Text files as documents: order, names, what is kept, and what a bad one gets."""

from __future__ import annotations

import bz2
import gzip
import os
import socket
import sysconfig
from pathlib import Path

import pyarrow as pa
import pytest
from readings import documents, in_units, texts

from xtdist.config import ConfigError, DataError
from xtdist.data import FilesSource, HfFolderSource, JsonlSource, ParquetSource, StdlibSource
from xtdist.data.sources import Input, input_sha256, inputs, plan_units, read_unit

KEPT = {
    "nul": (b"a\0b", "a\0b"),
    "crlf": (b"a\r\nb\r", "a\r\nb\r"),
    "empty": (b"", ""),
    "mark": (b"\xef\xbb\xbfa\xef\xbb\xbf", "a\ufeff"),
    "wide": ("é東😀".encode(), "é東😀"),
}


def test_files_come_in_name_order_with_relative_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b.md", "a/c/d.txt", "a.txt", "a-b/c.txt", "é.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(f"{name}\r\n".encode())
    found = list(documents(FilesSource(path=str(tmp_path))))
    names = ("a-b/c.txt", "a.txt", "a/c/d.txt", "a/z.txt", "b.txt", "é.txt")
    assert [(d.name, d.text) for d in found] == [(name, f"{name}\r\n") for name in names]
    found = list(documents(FilesSource(path=str(tmp_path), pattern="a/*.md")))
    assert [d.name for d in found] == ["a/b.md"]


def test_inputs_have_names_and_sizes_and_digests_of_what_is_stored(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc")
    (tmp_path / "b.txt.gz").write_bytes(packed := gzip.compress(b"def"))
    source = FilesSource(path=str(tmp_path), pattern="*.{txt,txt.gz}")
    assert inputs(source) == [Input("a.txt", 3), Input("b.txt.gz", len(packed))]
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert input_sha256(source, "a.txt") == abc  # from FIPS 180-2
    assert texts(source) == ["abc", "def"]


@pytest.mark.parametrize("name", KEPT)
def test_what_a_file_holds_is_kept(tmp_path: Path, name: str) -> None:
    raw, text = KEPT[name]
    (tmp_path / "a.txt").write_bytes(raw)
    assert texts(FilesSource(path=str(tmp_path))) == [text]


def test_packed_files_are_unpacked(tmp_path: Path) -> None:
    text = "naïve " * 100_000
    (tmp_path / "a.txt.bz2").write_bytes(bz2.compress(text.encode()))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.txt.zst").write_bytes(pa.compress(text.encode(), "zstd", asbytes=True))
    assert texts(FilesSource(path=str(tmp_path), pattern="*")) == [text] * 3


def test_small_files_share_units_and_large_ones_stay_whole(tmp_path: Path) -> None:
    sizes = [10, 20, 70, 500, 5, 5, 0, 96]
    for i, size in enumerate(sizes):
        (tmp_path / f"{i}.txt").write_bytes(b"x" * size)
    source = FilesSource(path=str(tmp_path))
    units = plan_units(source, 100)
    assert [[p.bytes for p in u.parts] for u in units] == [[10, 20, 70], [500], [5, 5, 0], [96]]
    assert [u.bytes for u in units] == [100, 500, 10, 96]
    for unit_bytes in (1, 100, 10**9):
        assert in_units(source, unit_bytes) == list(documents(source))


@pytest.mark.parametrize(
    ("raw", "byte"), [(b"ok\xff", 2), (b"\xef\xbb\xbf\xe9", 3), ("é".encode("utf-16"), 0)]
)
def test_a_file_that_is_not_utf8_is_named_or_skipped(tmp_path: Path, raw: bytes, byte: int) -> None:
    (tmp_path / "a.txt").write_bytes(b"ok")
    (tmp_path / "b.txt").write_bytes(raw)
    with pytest.raises(DataError, match=rf"b\.txt: not UTF-8 text \(byte {byte}\).*skip"):
        list(documents(FilesSource(path=str(tmp_path))))
    found = list(documents(FilesSource(path=str(tmp_path), bad_documents="skip")))
    assert [(d.name, d.text) for d in found] == [("a.txt", "ok"), ("b.txt", None)]


def test_one_file_is_a_source_too_and_takes_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("x")
    (tmp_path / "other.txt").write_text("y")
    source = FilesSource(path=str(tmp_path / "notes"))
    assert [(d.name, d.text) for d in documents(source)] == [("notes", "x")]
    with pytest.raises(DataError, match=r"source\.pattern: got '\*'.*one file.*leave"):
        plan_units(FilesSource(path=str(tmp_path / "notes"), pattern="*"), 2**20)


def test_only_regular_files_are_read_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "folder.txt" / "in.txt").write_text("in")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.txt").symlink_to(tmp_path / "folder.txt" / "in.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    found = documents(FilesSource(path=str(tmp_path)))
    assert [(d.name, d.text) for d in found] == [("folder.txt/in.txt", "in"), ("link.txt", "in")]


def _dangling(folder: Path) -> None:
    (folder / "bad.txt").symlink_to(folder / "nowhere")


def _unreadable(folder: Path) -> None:
    (folder / "bad.txt").symlink_to("/proc/self/mem")  # reading its start fails, also for root


def _circle(folder: Path) -> None:
    (folder / "bad.txt").symlink_to(folder / "bad.txt")


def _packed(folder: Path) -> None:
    (folder / "bad.txt.xz").write_bytes(b"x")


def _cut(folder: Path) -> None:
    (folder / "bad.txt.gz").write_bytes(gzip.compress(b"x" * 9999)[:-3])


def _odd_name(folder: Path) -> None:
    (folder / os.fsdecode(b"bad\xff.txt")).write_text("x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_dangling, r"bad\.txt: can't be read \(No such file"),
        (_unreadable, r"bad\.txt: can't be read \(Input/output error\)"),
        (_circle, r"bad\.txt: can't be read \(Too many levels"),
        (_packed, r"bad\.txt\.xz: .*pack the text as \.gz, \.zst, \.bz2"),
        (_cut, r"bad\.txt\.gz: can't be read \(Truncated.*restore it, or leave it out"),
        (_odd_name, r"name of file b'bad\\xff\.txt' is not UTF-8; rename"),
    ],
)
def test_a_file_that_cant_be_read_is_named_whatever_the_policy(
    tmp_path: Path, make: object, message: str
) -> None:
    (tmp_path / "a.txt").write_text("x")
    make(tmp_path)  # type: ignore[operator]
    source = FilesSource(path=str(tmp_path), pattern="*", bad_documents="skip")
    with pytest.raises(DataError, match=message):
        list(documents(source))


def test_a_file_that_changes_between_plan_and_reading_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    source = FilesSource(path=str(tmp_path))
    (unit,) = plan_units(source, 2**20)
    for other in ("abcd", "ab"):
        (tmp_path / "a.txt").write_text(other)
        with pytest.raises(DataError, match=r"a\.txt: the text changed"):
            list(read_unit(source, unit))


@pytest.mark.parametrize("kind", [FilesSource, JsonlSource, ParquetSource, HfFolderSource])
def test_a_path_that_is_no_place_for_text_is_named(tmp_path: Path, kind: type) -> None:
    with pytest.raises(DataError, match=r"source\.path: .*/no does not exist; give"):
        plan_units(kind(path=str(tmp_path / "no")), 2**20)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
        with pytest.raises(DataError, match=r"source\.path: .*/socket"):
            plan_units(kind(path=str(tmp_path / "socket")), 2**20)
    with pytest.raises(ConfigError, match="ftp"):
        plan_units(kind(path="ftp://host/x"), 2**20)


def test_the_standard_library_is_its_own_source_and_no_installed_package() -> None:
    found = {d.name: d.text for d in documents(StdlibSource())}
    root = Path(sysconfig.get_path("stdlib"))
    assert found["ast.py"] == (root / "ast.py").read_bytes().decode()
    assert "json/decoder.py" in found
    assert not [n for n in found if "site-packages" in n or "dist-packages" in n]
