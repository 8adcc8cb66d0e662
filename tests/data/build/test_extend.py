"""A dataset that extends another: old shards and tokenizer, new documents, old sides kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from xtdist.config import ConfigError, DataError
from xtdist.data import (
    FilesSource,
    LocalRunner,
    PrepareConfig,
    TokenDataset,
    prepare,
    read_manifest,
)

Make = Callable[..., PrepareConfig]


@pytest.fixture
def more(corpus: Path, tmp_path: Path) -> Path:
    """Five old documents and forty new ones, one of them twice."""
    folder = tmp_path / "more"
    folder.mkdir()
    for path in sorted(corpus.rglob("*.txt"))[:5]:
        shutil.copy(path, folder / path.name)
    for i in range(40):
        (folder / f"new{i}.txt").write_text(f"a new document, number {i}; " * (i + 1))
    (folder / "twice.txt").write_text((folder / "new7.txt").read_text())
    return folder


@pytest.fixture
def extend(more: Path, built_of_units: Path) -> Callable[..., PrepareConfig]:
    def make(output: Path, **changes: object) -> PrepareConfig:
        fields: dict[str, object] = {
            "source": FilesSource(path=str(more)),
            "extends": str(built_of_units),
            "valid_fraction": 0.2,
            "shard_tokens": 700,
            "unit_bytes": 8_000,
            "runner": LocalRunner(workers=1),
        }
        return PrepareConfig(output=str(output), **{**fields, **changes})  # type: ignore[arg-type]

    return make


def texts(folder: Path, split: str) -> list[str]:
    ds = TokenDataset.open(folder, split, verify="full")
    return [ds.tokenizer.decode(tokens[:-1]) for tokens in ds.documents()]


def test_an_extension_begins_with_the_old_documents_and_adds_the_new_ones(
    extend: Make, more: Path, built_of_units: Path, tmp_path: Path
) -> None:
    report = prepare(extend(tmp_path / "d"))
    new = {p.read_text() for p in more.glob("new*.txt")}
    for split in ("train", "valid"):
        before, after = texts(built_of_units, split), texts(tmp_path / "d", split)
        assert after[: len(before)] == before
        added = after[len(before) :]
        assert set(added) <= new
        for text in added:  # the side follows from the content, as everywhere
            digest = hashlib.sha256(text.encode()).digest()
            lot = (int.from_bytes(digest[16:24], "big") >> 11) / 2**53
            assert (lot < 0.2) == (split == "valid")
    assert (report.known, report.duplicates) == (5, 1)
    old = read_manifest(built_of_units)
    assert sum(s.documents for s in report.splits.values()) == old.build.documents + 40
    assert report.dataset_id != old.dataset_id
    assert read_manifest(tmp_path / "d").tokenizer == old.tokenizer
    assert prepare(extend(tmp_path / "d")).reused
    said = [json.loads(line) for line in (tmp_path / "d" / "inputs.jsonl").open()]
    assert [row["name"] for row in said][:2] == ["corpus.jsonl", sorted(more.iterdir())[0].name]
    assert len(said) == 1 + len(list(more.iterdir()))


def test_an_extension_can_be_extended(extend: Make, tmp_path: Path) -> None:
    prepare(extend(tmp_path / "d"))
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "x.txt").write_text("a third batch")
    third = FilesSource(path=str(tmp_path / "third"))
    report = prepare(extend(tmp_path / "e", source=third, extends=str(tmp_path / "d")))
    both = texts(tmp_path / "e", "train") + texts(tmp_path / "e", "valid")
    assert both.count("a third batch") == 1
    names = [s.path for s in read_manifest(tmp_path / "e").splits["train"]]
    assert len(set(names)) == len(names)
    assert report.known == 0
    said = json.loads((tmp_path / "e" / "report.json").read_text())
    assert sum(row["documents"] for row in said["document_tokens"]) == len(both)


def test_an_extension_that_would_move_documents_or_change_the_tokenizer_is_refused(
    extend: Make, built_of_units: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"got 0.1, the dataset of extends has 0.2"):
        prepare(extend(tmp_path / "d", valid_fraction=0.1))
    with pytest.raises(ConfigError, match="tokenizer: got one besides extends"):
        extend(tmp_path / "d", tokenizer={"kind": "byte"})
    with pytest.raises(ConfigError, match="is the output itself"):
        prepare(extend(built_of_units, replace=True))
    with pytest.raises(ConfigError, match="tokenizer: required key is missing"):
        PrepareConfig(output="d", source=FilesSource(path="x"))


def test_an_extension_of_a_damaged_dataset_is_refused(
    extend: Make, built_of_units: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(built_of_units, tmp_path / "old"))
    report = json.loads((old / "report.json").read_text())
    report["settings"]["valid_fraction"] = 0.5
    (old / "report.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match=r"report.json: missing or changed"):
        prepare(extend(tmp_path / "d", extends=str(old)))
    shutil.copy(built_of_units / "report.json", old)
    shard = next(old.glob("train-*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=shard.name):
        prepare(extend(tmp_path / "d", extends=str(old)))


@pytest.mark.parametrize("raw", [b"\xff\n", b"{", b'{"name": "a"}\n', b"3\n", b"[" * 100_000])
def test_a_damaged_list_of_inputs_is_refused_before_any_text_is_read(
    extend: Make, built_of_units: Path, tmp_path: Path, raw: bytes
) -> None:
    old = Path(shutil.copytree(built_of_units, tmp_path / "old"))
    path = old / "inputs.jsonl"
    path.write_bytes(path.read_bytes() + raw)
    with pytest.raises(DataError, match=r"inputs.jsonl: damaged.*restore the file, or remove it"):
        prepare(extend(tmp_path / "d", extends=str(old)), lambda p: pytest.fail(p.stage))


def test_a_list_of_inputs_may_be_missing_and_hold_any_name(
    extend: Make, built_of_units: Path, more: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(built_of_units, tmp_path / "old"))
    (old / "inputs.jsonl").unlink()
    (more / "a\u2028b.txt").write_text("a name that holds the end of a line")
    prepare(extend(tmp_path / "d", extends=str(old)))
    (more / "last.txt").write_text("and one more")
    prepare(extend(tmp_path / "e", extends=str(tmp_path / "d")))
    names = [json.loads(line)["name"] for line in (tmp_path / "e" / "inputs.jsonl").open()]
    given = sorted(p.name for p in more.iterdir())
    assert names == [n for n in given if n != "last.txt"] + given
