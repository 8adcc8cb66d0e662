"""The full check: any damage is found, all of it is told, and reading refuses it too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.data.handmade import (
    doc_id,
    forge_manifest,
    forge_shard,
    random_documents,
    write_dataset,
    write_shards,
)
from xtdist.config import DataError
from xtdist.data import TokenDataset, byte_tokenizer, read_manifest
from xtdist.data.verify import verify

TRAIN, VALID = random_documents([40, 30, 20, 45, 5]), random_documents([25, 40, 9], seed=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards for training and two for validation."""
    return write_dataset(
        tmp_path_factory.mktemp("made") / "d", shard_tokens=50, train=TRAIN, valid=VALID
    )


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "d"))


def read_everything(folder: Path) -> None:
    for split in ("train", "valid"):
        ds = TokenDataset.open(folder, split)
        ds.read(0, ds.total_tokens)


def test_a_sound_dataset_has_no_problem_and_the_progress_is_its_bytes(made: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(made, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert report.problems == ()
    sizes = [p.stat().st_size for p in sorted(made.glob("*.arrow"))]
    assert seen == [(int(done), sum(sizes)) for done in np.cumsum([0, *sizes])]
    assert (report.shards, report.documents) == (len(sizes), len(TRAIN) + len(VALID))
    assert report.tokens == sum(map(len, TRAIN + VALID))
    assert report.bytes == sum(sizes)
    assert report.dataset_id == read_manifest(made).dataset_id


def test_200_changed_bytes_and_cuts_are_all_refused(copy: Path) -> None:
    rng = np.random.default_rng(0)
    files = sorted(copy.iterdir())
    assert {p.suffix for p in files} == {".arrow", ".json"}
    for i in range(200):
        path = files[i % len(files)]
        good = path.read_bytes()
        bad, at = bytearray(good), int(rng.integers(len(good)))
        if i % 10 == 9:
            del bad[at:]
        elif i % 10 == 8:
            bad.insert(at, int(rng.integers(256)))
        else:
            bad[at] ^= int(rng.integers(1, 256))
        path.write_bytes(bad)
        with pytest.raises(DataError, match=path.name):
            read_everything(copy)
        problems = verify(copy).problems
        assert problems
        assert all(path.name in problem for problem in problems), (i, at, problems)
        path.write_bytes(good)
    read_everything(copy)
    assert verify(copy).ok


def test_all_problems_are_told_at_once(copy: Path) -> None:
    shards = sorted(copy.glob("*.arrow"))
    raw = bytearray(shards[0].read_bytes())
    raw[100] ^= 4
    shards[0].write_bytes(raw)
    shards[1].write_bytes(shards[1].read_bytes()[:-8])
    shards[3].unlink()
    byte_tokenizer().save(copy / "tokenizer.json")
    with (copy / "tokenizer.json").open("a") as file:
        file.write("\n")
    report = verify(copy)
    expected = [
        "tokenizer.json: not the tokenizer",
        f"{shards[0].name}: content changed",
        rf"{shards[1].name}: shard has",
        f"{shards[3].name}: shard is missing",
    ]
    assert len(report.problems) == len(expected)
    for problem, part in zip(report.problems, expected, strict=True):
        assert part in problem
    assert report.shards == len(shards) - 3
    assert not report.ok


def test_a_damaged_manifest_is_one_problem_and_a_missing_folder_an_error(copy: Path) -> None:
    (copy / "manifest.json").write_text("{}")
    report = verify(copy)
    assert report.dataset_id is None
    assert len(report.problems) == 1
    assert "manifest.json" in report.problems[0]
    (copy / "manifest.json").unlink()
    assert "has no manifest.json" in verify(copy).problems[0]
    with pytest.raises(DataError, match="no such folder"):
        verify(copy / "nowhere")


def shard_bytes(folder: Path, documents: list[np.ndarray], *, ids_of: str = "train") -> bytes:
    """A well-formed shard with any tokens, ids as those of the split's first documents."""
    folder.mkdir()
    (info,) = write_shards(folder, ids_of, documents, shard_tokens=10**6, dtype="uint16")
    return (folder / info.path).read_bytes()


def changed(documents: list[np.ndarray], number: int, at: int, token: int) -> list[np.ndarray]:
    result = [d.copy() for d in documents]
    result[number][at] = token
    return result


FIRST = TRAIN[:2]  # what the first shard holds


@pytest.mark.parametrize(
    ("documents", "fields", "message"),
    [
        (changed(FIRST, 1, -1, 7), {}, "1 documents don't end with the end-of-text id 256, doc"),
        (changed(FIRST, 0, 3, 300), {"max_id": 258}, "holds id 300, the vocabulary ends at 258"),
        (FIRST, {"max_id": 255}, "its largest id is 256, the manifest says max_id 255"),
    ],
)
def test_a_shard_that_agrees_with_its_hash_but_breaks_a_rule_is_told(
    copy: Path, tmp_path: Path, documents: list[np.ndarray], fields: Any, message: str
) -> None:
    forge_shard(copy, "train", 0, shard_bytes(tmp_path / "x", documents), **fields)
    problems = verify(copy).problems
    assert any(f"train-00000.arrow: {message}" in p for p in problems), problems


def test_a_document_that_stands_twice_is_named_with_both_places(copy: Path, tmp_path: Path) -> None:
    raw = shard_bytes(tmp_path / "x", VALID[:1], ids_of="train")  # as training document 0
    with pa.ipc.open_file(raw) as reader:
        assert reader.get_batch(0).column("doc_id").to_pylist() == [doc_id("train", 0)]
    forge_shard(copy, "valid", 0, raw, docs=1, tokens=25, text_bytes=24)
    tree = json.loads((copy / "manifest.json").read_text())
    tree["build"]["documents"] -= 1
    tree["build"]["text_bytes"] -= 39
    forge_manifest(copy, tree)
    (problem,) = verify(copy).problems
    assert f"doc_id {doc_id('train', 0).hex()} stands in " in problem
    assert "document 0 of train-00000.arrow and in document 0 of valid-00000.arrow" in problem
    assert "1 such rep" in problem


@pytest.mark.parametrize("key", ["documents", "text_bytes"])
def test_totals_that_are_not_those_of_the_shards_are_told(copy: Path, key: str) -> None:
    tree = json.loads((copy / "manifest.json").read_text())
    is_ = tree["build"][key]
    tree["build"][key] += 1
    forge_manifest(copy, tree)
    (problem,) = verify(copy).problems
    assert f"manifest.json: build.{key} is {is_ + 1}, its shards have {is_}" in problem


def test_a_built_dataset_is_sound(built: Path) -> None:
    assert verify(built).problems == ()
