"""The manifest: one text for one content, its own id, and nothing else accepted."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.data.handmade import forge_manifest, random_documents, write_dataset
from xtdist.config import DataError
from xtdist.data import TokenDataset, read_manifest
from xtdist.data.manifest import canonical_text


@pytest.fixture
def made(tmp_path: Path) -> Path:
    documents = random_documents([40, 70, 3, 90])
    return write_dataset(tmp_path / "made", train=documents[:3], valid=documents[3:])


def tree_of(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return tree


def test_the_file_is_the_canonical_text_with_the_digest_of_the_rest(made: Path) -> None:
    manifest = read_manifest(made)
    assert (made / "manifest.json").read_text() == canonical_text(manifest)
    tree = tree_of(made)
    said = tree.pop("dataset_id")
    plain = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    assert said == manifest.dataset_id == hashlib.sha256(plain.encode()).hexdigest()
    assert tree["format_version"] == 3


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder.*xtdist prepare"):
        TokenDataset.open(tmp_path / "nowhere")


def test_a_folder_without_a_manifest_is_no_dataset(made: Path) -> None:
    (made / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        TokenDataset.open(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["splits"]["train"][0].update(path=m["splits"]["valid"][0]["path"]), "twice"),
        (lambda m: m["splits"]["train"][0].update(tokens=0), "tokens"),
        (lambda m: m.update(vocab_size="300"), "vocab_size"),
        (lambda m: m.update(vocab_size=70_000), "don't fit uint16"),
        (lambda m: m.update(colour=1), "colour: unknown key"),
        (lambda m: m.pop("build"), "build"),
        (lambda m: m.update(format_version=2), "format_version is 2, this version reads 3"),
        (lambda m: m.update(eot_id=259), "eot_id is 259, the vocabulary ends at 258"),
        (lambda m: m["splits"]["train"][0].update(path="../x.arrow"), r"\.\./x\.arrow"),
        (lambda m: m["splits"]["valid"][0].update(path="manifest.json"), r"splits\.valid\.0"),
        (lambda m: m["splits"]["train"][0].update(max_id=5000), "holds id 5000"),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(
    made: Path, change: Any, message: str
) -> None:
    tree = tree_of(made)
    change(tree)
    forge_manifest(made, tree)
    with pytest.raises(DataError, match=message):
        read_manifest(made)


@pytest.mark.parametrize("key", ["eot_id", "vocab_size", "documents", "sha256"])
def test_a_value_changed_by_hand_is_refused_as_another_dataset(made: Path, key: str) -> None:
    path = made / "manifest.json"
    lines = path.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if f'"{key}":' in line)
    digit = next(c for c in reversed(lines[at]) if c.isdigit())
    lines[at] = lines[at][::-1].replace(digit, str((int(digit) + 1) % 10), 1)[::-1]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"manifest\.json: was changed .*dataset_id is"):
        read_manifest(made)


def test_other_spacing_is_refused(made: Path) -> None:
    path = made / "manifest.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(DataError, match=r"manifest\.json: was edited by hand"):
        read_manifest(made)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00", "{}", "[" * 3000, "[" * 300_000])
def test_a_manifest_that_is_not_one_is_refused(made: Path, text: str) -> None:
    (made / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json: (damaged|format_version)"):
        TokenDataset.open(made)


def test_the_dataset_id_changes_with_any_shard_hash(made: Path) -> None:
    before = read_manifest(made).dataset_id
    tree = tree_of(made)
    tree["splits"]["valid"][0]["sha256"] = "0" * 64
    forge_manifest(made, tree)
    assert read_manifest(made).dataset_id != before


def test_the_dataset_id_does_not_depend_on_the_folder(made: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(made, tmp_path / "elsewhere")
    assert read_manifest(moved).dataset_id == read_manifest(made).dataset_id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eot_id": 3}, "eot_id is 3, its tokenizer has 256"),
        ({"vocab_size": 5000}, "vocab_size is 5000, its tokenizer has 259"),
    ],
)
def test_a_manifest_that_contradicts_its_tokenizer_is_refused(
    made: Path, change: dict[str, int], message: str
) -> None:
    forge_manifest(made, {**tree_of(made), **change})
    with pytest.raises(DataError, match=message):
        TokenDataset.open(made)
