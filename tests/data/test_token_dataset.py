"""Reading a dataset: every token where it belongs, and no damaged byte let through."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtdist.config import DataError
from xtdist.data import TokenDataset, byte_tokenizer, read_manifest


def stream(folder: Path, split: str) -> tuple[np.ndarray, list[int]]:
    """The split's tokens and document lengths, read with plain pyarrow."""
    tokens, lengths = [], []
    for shard in json.loads((folder / "manifest.json").read_text())["splits"][split]:
        with pa.memory_map(str(folder / shard["path"])) as file:
            for row in pa.ipc.open_file(file).read_all().column("tokens").to_pylist():
                tokens += row
                lengths.append(len(row))
    return np.array(tokens), lengths


def rewrite_manifest(folder: Path, tree: dict[str, object]) -> None:
    """Write a manifest as a forger would: in the canonical form, with the id of its content."""
    content = {k: v for k, v in tree.items() if k != "dataset_id"}
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["dataset_id"] = hashlib.sha256(plain.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")


def test_windows_and_documents_are_the_stream_that_pyarrow_reads(built: Path) -> None:
    ds = TokenDataset.open(built, "train")
    flat, lengths = stream(built, "train")
    assert len(ds.manifest.splits["train"]) > 3
    assert ds.total_tokens == len(flat)
    assert [len(d) for d in ds.documents()] == lengths
    np.testing.assert_array_equal(np.concatenate(list(ds.documents())), flat)
    for seq_len in (1, 7, 64, 5000):
        count = ds.num_windows(seq_len)
        assert count * seq_len + 1 <= len(flat) < (count + 1) * seq_len + 1
        expected = np.array([flat[i * seq_len : i * seq_len + seq_len + 1] for i in range(count)])
        got = ds.windows(np.arange(count), seq_len)
        np.testing.assert_array_equal(got, expected.reshape(got.shape))
        for i in {0, count // 2, count - 1}:
            np.testing.assert_array_equal(ds.window(i, seq_len), expected[i])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seq_len=st.integers(1, 400))
def test_every_token_but_the_ends_is_a_target_exactly_once(
    built: Path, data: st.DataObject, seq_len: int
) -> None:
    ds = TokenDataset.open(built, data.draw(st.sampled_from(["train", "valid"])), verify="size")
    flat = ds.read(0, ds.total_tokens)
    rows = ds.windows(np.arange(ds.num_windows(seq_len)), seq_len)
    targets = rows[:, 1:].reshape(-1)
    np.testing.assert_array_equal(targets, flat[1 : 1 + len(targets)])
    assert len(flat) - 1 - len(targets) < seq_len


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_range_reads_as_a_slice_of_the_stream(built: Path, data: st.DataObject) -> None:
    ds = TokenDataset.open(built, "train", verify="size")
    start = data.draw(st.integers(0, ds.total_tokens))
    stop = data.draw(st.integers(start, ds.total_tokens))
    np.testing.assert_array_equal(ds.read(start, stop), stream(built, "train")[0][start:stop])


def test_reading_inside_a_shard_copies_nothing(built: Path) -> None:
    before = pa.total_allocated_bytes()
    ds = TokenDataset.open(built, "train")
    view = ds.read(3, 500)
    assert pa.total_allocated_bytes() == before
    assert not view.flags.owndata
    assert not view.flags.writeable


def test_a_window_outside_the_split_is_an_index_error(built: Path) -> None:
    ds = TokenDataset.open(built, "valid")
    count = ds.num_windows(16)
    with pytest.raises(IndexError, match=str(count)):
        ds.window(count, 16)
    with pytest.raises(IndexError, match=str(count)):
        ds.windows(np.array([0, count]), 16)
    with pytest.raises(IndexError):
        ds.read(0, ds.total_tokens + 1)


def test_a_dataset_pickles_as_its_folder(built: Path) -> None:
    ds = TokenDataset.open(built, "valid")
    again = pickle.loads(pickle.dumps(ds))
    assert again.dataset_id == ds.dataset_id
    np.testing.assert_array_equal(again.window(0, 32), ds.window(0, 32))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder.*xtdist prepare"):
        TokenDataset.open(tmp_path / "nowhere")


def test_a_folder_without_a_manifest_is_no_dataset(dataset: Path) -> None:
    (dataset / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        TokenDataset.open(dataset)


def test_an_unknown_split_is_refused_with_the_ones_there_are(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"'test'.*train, valid"):
        TokenDataset.open(dataset, "test")


def test_any_changed_byte_of_a_shard_is_refused_on_first_touch(dataset: Path) -> None:
    info = TokenDataset.open(dataset).manifest.splits["train"][1]
    path = dataset / info.path
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    for place in [0, len(good) - 1, *rng.integers(0, len(good), 60).tolist()]:
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        ds = TokenDataset.open(dataset)
        ds.window(0, 16)  # the first shard is whole
        with pytest.raises(DataError, match=f"{info.path}: content changed"):
            ds.read(0, ds.total_tokens)
    with pytest.raises(DataError, match=f"{info.path}: content changed"):
        TokenDataset.open(dataset, verify="full")
    path.write_bytes(good)
    TokenDataset.open(dataset, verify="full")


def test_a_cut_or_missing_shard_is_refused_on_opening(dataset: Path) -> None:
    path = dataset / TokenDataset.open(dataset).manifest.splits["train"][-1].path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path.name}: shard has \d+ bytes, not"):
        TokenDataset.open(dataset, verify="size")
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name}: shard is missing"):
        TokenDataset.open(dataset, verify="size")


def test_without_hashing_an_id_outside_the_vocabulary_is_still_refused(dataset: Path) -> None:
    path = dataset / TokenDataset.open(dataset).manifest.splits["train"][0].path
    with pa.memory_map(str(path)) as file:
        first = pa.ipc.open_file(file).read_all().column("tokens").chunk(0).values.to_numpy()[:8]
    raw = bytearray(path.read_bytes())
    at = raw.index(first.tobytes())
    raw[at : at + 2] = b"\xff\xff"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=f"{path.name}: holds id 65535"):
        TokenDataset.open(dataset, verify="size").window(0, 4)


def test_a_shard_that_is_no_arrow_file_is_refused(dataset: Path) -> None:
    info = TokenDataset.open(dataset).manifest.splits["valid"][0]
    (dataset / info.path).write_bytes(b"x" * info.bytes)
    with pytest.raises(DataError, match=f"{info.path}: not a readable shard"):
        TokenDataset.open(dataset, "valid", verify="size").window(0, 4)


def test_shards_that_changed_places_are_refused(dataset: Path) -> None:
    first, second = (dataset / s.path for s in read_manifest(dataset).splits["train"][:2])
    first.rename(dataset / "x")
    second.rename(first)
    (dataset / "x").rename(second)
    with pytest.raises(DataError, match=first.name):
        TokenDataset.open(dataset).window(0, 16)


def test_a_swapped_tokenizer_is_refused(dataset: Path) -> None:
    byte_tokenizer().save(dataset / "tokenizer.json")
    with pytest.raises(DataError, match=r"tokenizer\.json: not the tokenizer that this dataset"):
        TokenDataset.open(dataset)


def test_a_missing_tokenizer_is_named(dataset: Path) -> None:
    (dataset / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: can't be read"):
        TokenDataset.open(dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["splits"]["train"][0].update(path=m["splits"]["valid"][0]["path"]), "twice"),
        (lambda m: m.update(vocab_size="300"), "vocab_size"),
        (lambda m: m.update(colour=1), "colour: unknown key"),
        (lambda m: m.update(format_version=9), "format_version is 9"),
        (lambda m: m["splits"]["train"][0].update(path="../x.arrow"), r"\.\./x\.arrow"),
        (lambda m: m["splits"]["train"][0].update(max_id=5000), "holds id 5000"),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(
    dataset: Path, change: object, message: str
) -> None:
    path = dataset / "manifest.json"
    tree = json.loads(path.read_text())
    change(tree)  # type: ignore[operator]
    rewrite_manifest(dataset, tree)
    with pytest.raises(DataError, match=message):
        TokenDataset.open(dataset)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00"])
def test_a_manifest_that_is_not_one_is_refused(dataset: Path, text: str) -> None:
    (dataset / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        TokenDataset.open(dataset)


def test_the_dataset_id_changes_with_any_shard_hash(dataset: Path) -> None:
    before = read_manifest(dataset).dataset_id
    tree = json.loads((dataset / "manifest.json").read_text())
    assert tree["dataset_id"] == before
    tree["splits"]["valid"][0]["sha256"] = "0" * 64
    rewrite_manifest(dataset, tree)
    assert read_manifest(dataset).dataset_id != before


def test_the_dataset_id_does_not_depend_on_the_folder(built: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(built, tmp_path / "elsewhere")
    assert read_manifest(moved).dataset_id == read_manifest(built).dataset_id


@pytest.mark.parametrize(("key", "value"), [("eot_id", 3), ("vocab_size", 5000)])
def test_a_manifest_that_contradicts_its_tokenizer_is_refused(
    dataset: Path, key: str, value: int
) -> None:
    path = dataset / "manifest.json"
    tree = json.loads(path.read_text())
    rewrite_manifest(dataset, {**tree, key: value})
    with pytest.raises(DataError, match=f"{key} is {value}, its tokenizer has {tree[key]}"):
        TokenDataset.open(dataset)


def test_a_deeply_nested_manifest_is_refused(dataset: Path) -> None:
    for text in ("[" * 3000, "[" * 300_000):
        (dataset / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=r"manifest\.json: damaged"):
            TokenDataset.open(dataset)
