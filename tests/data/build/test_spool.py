"""Datasets from documents that a program gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xtdist.config import ConfigError, DataError
from xtdist.data import ByteTokenizerConfig, LocalRunner, TokenDataset, prepare_documents

SETTINGS = {"tokenizer": ByteTokenizerConfig(), "valid_fraction": 0.3, "unit_bytes": 500}


def texts() -> Iterator[str]:
    for i in range(60):
        yield f"döcument\x00 {i}\r\n" * (i % 7 + 1)


def test_any_iterable_of_texts_makes_a_dataset(tmp_path: Path) -> None:
    one = LocalRunner(workers=1)
    report = prepare_documents(texts(), output=tmp_path / "d", runner=one, **SETTINGS)
    found = []
    for split in ("train", "valid"):
        ds = TokenDataset.open(tmp_path / "d", split)
        found += [ds.tokenizer.decode(tokens) for tokens in ds.documents()]
    assert sorted(found) == sorted(texts())
    again = prepare_documents(texts(), output=tmp_path / "d", runner=one, **SETTINGS)
    assert again.reused
    assert again.dataset_id == report.dataset_id
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_units_finished_before_a_failure_are_found_when_the_iterable_is_given_again(
    tmp_path: Path,
) -> None:
    settings = {**SETTINGS, "runner": LocalRunner(workers=1)}
    prepare_documents(texts(), output=tmp_path / "whole", **settings)

    def stop(progress: object) -> None:
        if getattr(progress, "stage", "") == "encode" and progress.done_bytes > 2000:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_documents(texts(), output=tmp_path / "d", progress=stop, **settings)
    shards = list(tmp_path.glob(".d.build/*/dataset/*.arrow"))
    before = {p.name: p.stat().st_ino for p in shards}
    prepare_documents(texts(), output=tmp_path / "d", **settings)
    assert len(before) > 2
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "d" / path.name).read_bytes()
    for name, inode in before.items():
        assert (tmp_path / "d" / name).stat().st_ino == inode


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([], "gave none"),
        (["fine", 3], "number 1 is of type int"),
        ([b"raw"], "number 0 is of type bytes"),
        ("one text", "got one str; give an iterable of texts"),
        (b"bytes", "got one bytes"),
        ({"a": "b"}, "got one dict"),
        (7, "got one int"),
        (["fine", "half \ud800"], "number 1 has half of a surrogate pair"),
    ],
)
def test_documents_that_are_no_texts_are_refused(tmp_path: Path, documents: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        prepare_documents(documents, output=tmp_path / "d", **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_settings_that_do_not_exist_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sahrd_tokens"):
        prepare_documents(texts(), output=tmp_path / "d", sahrd_tokens=3, **SETTINGS)
    with pytest.raises(ConfigError, match=r"^output: got 'a\\x00b'; no path holds"):
        prepare_documents(texts(), output="a\0b", **SETTINGS)


def test_a_mistake_removes_no_unit_that_was_finished_before(tmp_path: Path) -> None:
    finished = tmp_path / ".d.build" / "0123" / "receipt-00000.json"
    finished.parent.mkdir(parents=True)
    finished.write_text("{}")
    with pytest.raises(DataError, match="number 1 is of type int"):
        prepare_documents(["text", 1], output=tmp_path / "d", tokenizer=ByteTokenizerConfig())  # type: ignore[list-item]
    assert finished.exists()
