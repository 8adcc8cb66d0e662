"""Preparing a dataset: what is kept, how it is split, and that doing it twice does it once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from xtdist.config import ConfigError, DataError, from_mapping, load
from xtdist.data import (
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    FilesSource,
    JsonlSource,
    PrepareConfig,
    Progress,
    TokenDataset,
    prepare,
    read_manifest,
    train_bpe,
)

Make = Callable[..., PrepareConfig]
CONFIGS = Path(__file__).parents[3] / "jobs" / "configs"


def texts_of(folder: Path, split: str) -> list[str]:
    """A split's documents, decoded; each must end with end-of-text and have no other."""
    ds = TokenDataset.open(folder, split)
    result = []
    for tokens in ds.documents():
        assert tokens[-1] == ds.tokenizer.eot_id
        assert (tokens[:-1] < ds.tokenizer.eot_id).all()
        result.append(ds.tokenizer.decode(tokens))
    return result


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_the_splits_decode_to_the_corpus_and_share_no_document(
    corpus: Path, settings: Make, tmp_path: Path, kind: str
) -> None:
    tokenizer = ByteTokenizerConfig() if kind == "byte" else BpeTokenizerConfig(vocab_size=380)
    report = prepare(settings(tmp_path / "d", tokenizer=tokenizer))
    given = sorted(p.read_text("utf-8") for p in corpus.rglob("*.txt"))
    parts = {split: texts_of(tmp_path / "d", split) for split in ("train", "valid")}
    assert sorted(parts["train"] + parts["valid"]) == given
    for split, texts in parts.items():
        ds = TokenDataset.open(tmp_path / "d", split)
        assert report.splits[split].documents == len(texts) == ds.num_documents
        assert ds.text_bytes == sum(len(t.encode()) for t in texts)
        assert report.splits[split].text_bytes == ds.text_bytes
        assert report.splits[split].tokens == ds.total_tokens
    assert 0.1 < len(parts["valid"]) / len(given) < 0.3  # 0.2 asked of 120 documents
    assert report.vocab_size == (259 if kind == "byte" else 380)
    assert not report.reused


def test_shards_close_at_their_size_and_keep_documents_whole(built: Path) -> None:
    ds = TokenDataset.open(built, "train")
    longest = max(len(d) for d in ds.documents())
    shards = ds.manifest.splits["train"]
    assert len(shards) > 3
    assert all(2000 <= s.tokens < 2000 + longest for s in shards[:-1])
    assert sum(s.docs for s in shards) == ds.num_documents


def test_preparing_again_reuses_the_dataset(settings: Make, dataset: Path) -> None:
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in dataset.iterdir()}
    report = prepare(settings(dataset))
    assert report.reused
    assert report.dataset_id == read_manifest(dataset).dataset_id
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in dataset.iterdir()} == before


def test_the_same_text_elsewhere_gives_the_same_dataset(
    corpus: Path, settings: Make, built: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(corpus, tmp_path / "moved")
    report = prepare(settings(tmp_path / "d", source=FilesSource(path=str(moved))))
    assert report.dataset_id == read_manifest(built).dataset_id


def test_the_same_text_as_json_lines_gives_the_same_dataset(
    corpus: Path, settings: Make, built: Path, tmp_path: Path
) -> None:
    paths = sorted(corpus.rglob("*.txt"), key=lambda p: p.as_posix())
    rows = [json.dumps({"id": i, "body": p.read_text("utf-8")}) for i, p in enumerate(paths)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(rows))
    source = JsonlSource(path=str(tmp_path / "a.jsonl"), field="body")
    report = prepare(settings(tmp_path / "d", source=source))
    assert report.dataset_id == read_manifest(built).dataset_id
    assert json.loads((tmp_path / "d" / "report.json").read_text())["source"] == "jsonl"
    assert prepare(settings(tmp_path / "d")).reused  # from text files


def test_a_document_keeps_its_split_when_others_are_added(
    corpus: Path, settings: Make, built: Path, tmp_path: Path
) -> None:
    more = shutil.copytree(corpus, tmp_path / "more")
    for i in range(50):
        (more / f"new{i}.txt").write_text(f"new document {i}")
    prepare(settings(tmp_path / "d", source=FilesSource(path=str(more))))
    for split in ("train", "valid"):
        assert set(texts_of(built, split)) <= set(texts_of(tmp_path / "d", split))


def test_duplicates_and_empty_documents_are_left_out_and_counted(
    corpus: Path, settings: Make, built: Path, tmp_path: Path
) -> None:
    more = shutil.copytree(corpus, tmp_path / "more")
    for path in list(more.glob("part1/*.txt"))[:7]:
        shutil.copy(path, more / f"copy-{path.name}")
    (more / "empty.txt").write_text("")
    (more / "blank.txt").write_text(" \n\t")
    report = prepare(settings(tmp_path / "d", source=FilesSource(path=str(more))))
    assert (report.duplicates, report.empty) == (7, 2)
    for split in ("train", "valid"):
        assert sorted(texts_of(tmp_path / "d", split)) == sorted(texts_of(built, split))


def test_the_tokenizer_never_sees_validation_text(built: Path) -> None:
    train, valid = texts_of(built, "train"), texts_of(built, "valid")
    tokenizer = TokenDataset.open(built).tokenizer
    assert tokenizer.sha256 == train_bpe(train, 300).sha256
    assert tokenizer.sha256 != train_bpe(train + valid, 300).sha256


def test_another_dataset_in_the_way_is_kept_unless_told_otherwise(
    settings: Make, dataset: Path, corpus: Path, tmp_path: Path
) -> None:
    before = read_manifest(dataset).dataset_id
    with pytest.raises(
        DataError, match=r"other settings: shard_tokens: 2000 there, 5000 here\).*replace=true"
    ):
        prepare(settings(dataset, shard_tokens=5000))
    more = shutil.copytree(corpus, tmp_path / "more")
    (more / "new.txt").write_text("new")
    with pytest.raises(DataError, match=r"other text.*replace=true"):
        prepare(settings(dataset, source=FilesSource(path=str(more))))
    assert read_manifest(dataset).dataset_id == before
    report = prepare(settings(dataset, shard_tokens=5000, replace=True))
    assert not report.reused
    assert read_manifest(dataset).dataset_id == report.dataset_id != before
    assert [p.name for p in dataset.parent.iterdir() if p.name.startswith(".")] == []


def test_settings_that_differ_from_those_of_a_dataset_are_all_named(
    settings: Make, dataset: Path
) -> None:
    said = (
        r"\(made with other settings: tokenizer.vocab_size: 300 there, 310 here; valid_fraction: "
    )
    with pytest.raises(DataError, match=said + r"0.2 there, 0.3 here\)"):
        prepare(settings(dataset, tokenizer=BpeTokenizerConfig(vocab_size=310), valid_fraction=0.3))
    with pytest.raises(DataError, match=r"settings: tokenizer: bpe there, byte here\)"):
        prepare(settings(dataset, tokenizer=ByteTokenizerConfig()))
    report = json.loads((dataset / "report.json").read_text())
    report["settings"]["shard_tokens"] = 3  # not what it was made with
    for text in (json.dumps(report), "[" * 100_000, None):
        if text is None:
            (dataset / "report.json").unlink()
        else:
            (dataset / "report.json").write_text(text)
        with pytest.raises(DataError, match=r"can't be said, report.json is missing or changed\)"):
            prepare(settings(dataset, shard_tokens=5000))


def test_a_damaged_dataset_is_not_reused(settings: Make, dataset: Path) -> None:
    path = dataset / read_manifest(dataset).splits["valid"][0].path
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=f"damaged.*{path.name}"):
        prepare(settings(dataset))
    report = prepare(settings(dataset, replace=True))
    assert not report.reused
    TokenDataset.open(dataset, "valid", verify="full")


def test_files_that_are_not_a_dataset_are_never_touched(settings: Make, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    for replace in (False, True):
        with pytest.raises(DataError, match="mine holds files that are not a dataset"):
            prepare(settings(tmp_path / "mine", replace=replace))
    with pytest.raises(DataError, match="letter is a file"):
        prepare(settings(tmp_path / "mine" / "letter"))
    assert (tmp_path / "mine" / "letter").read_text() == "dear"
    with pytest.raises(ConfigError, match="output"):
        prepare(settings(Path("/")))


def test_an_empty_folder_is_filled(settings: Make, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    assert not prepare(settings(tmp_path / "d")).reused


def test_an_empty_corpus_is_refused_and_leaves_nothing(settings: Make, tmp_path: Path) -> None:
    root = tmp_path / "c"
    root.mkdir()
    source = FilesSource(path=str(root))
    with pytest.raises(DataError, match=r"no file in .*/c matches '\*\*/\*\.txt'"):
        prepare(settings(tmp_path / "d", source=source))
    (root / "a.txt").write_text("  \n")
    with pytest.raises(DataError, match="the corpus is empty"):
        prepare(settings(tmp_path / "d", source=source))
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_split_without_documents_is_refused(settings: Make, tmp_path: Path) -> None:
    root = tmp_path / "c"
    root.mkdir()
    (root / "a.txt").write_text("only one")
    source = FilesSource(path=str(root))
    with pytest.raises(DataError, match=r"one document only.*several files, or as JSON lines"):
        prepare(settings(tmp_path / "d", source=source, valid_fraction=0.5))
    (root / "b.txt").write_text("and another")
    with pytest.raises(DataError, match="valid split; raise valid_fraction"):
        prepare(settings(tmp_path / "d", source=source, valid_fraction=1e-9))
    with pytest.raises(DataError, match="train split; lower valid_fraction"):
        prepare(settings(tmp_path / "d", source=source, valid_fraction=1 - 1e-9))


def test_text_that_changes_while_it_is_read_is_refused(
    corpus: Path, settings: Make, tmp_path: Path
) -> None:
    moving = shutil.copytree(corpus, tmp_path / "moving")

    def disturb(progress: Progress) -> None:
        if progress.stage == "encode":
            (moving / "part2" / "doc119.txt").write_text("changed")

    with pytest.raises(DataError, match="the text changed while it was read"):
        prepare(settings(tmp_path / "d", source=FilesSource(path=str(moving))), disturb)
    assert [p.name for p in tmp_path.iterdir()] == ["moving"]


def test_progress_passes_through_the_stages_and_ends_at_the_whole(
    settings: Make, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    report = prepare(settings(tmp_path / "d"), seen.append)
    assert list(dict.fromkeys(p.stage for p in seen)) == ["scan", "tokenizer", "encode"]
    encode = [p for p in seen if p.stage == "encode"]
    total = sum(s.text_bytes for s in report.splits.values())
    assert (encode[-1].done_bytes, encode[-1].total_bytes) == (total, total)
    assert [p.done_bytes for p in encode] == sorted(p.done_bytes for p in encode)


def test_a_subset_for_the_tokenizer_is_bounded(settings: Make, tmp_path: Path) -> None:
    seen: list[Progress] = []
    spec = BpeTokenizerConfig(vocab_size=300, train_bytes=20_000)
    prepare(settings(tmp_path / "d", tokenizer=spec), seen.append)
    used = max(p.done_bytes for p in seen if p.stage == "tokenizer")
    assert 10_000 < used < 30_000


def test_a_folder_with_some_manifest_and_other_files_is_never_replaced(
    settings: Make, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "my app"}')
    (dataset / "notes.md").write_text("mine")
    for folder, name in ((tmp_path / "app", "manifest.json"), (dataset, "notes.md")):
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        with pytest.raises(DataError, match=f"not a dataset .*{name}"):
            prepare(settings(folder, shard_tokens=5000, replace=True))
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_bpe_from_few_large_documents_learns_from_the_first_by_lot(
    settings: Make, tmp_path: Path
) -> None:
    (tmp_path / "c").mkdir()
    for i in range(8):
        (tmp_path / "c" / f"{i}.txt").write_text(f"{i} the cat sat on the mat; " * 2000)
    config = settings(
        tmp_path / "d",
        source=FilesSource(path=str(tmp_path / "c")),
        tokenizer=BpeTokenizerConfig(vocab_size=270, train_bytes=500),
        valid_fraction=0.5,
    )
    assert prepare(config).vocab_size == 270
    tokenizer = TokenDataset.open(tmp_path / "d").tokenizer
    train = texts_of(tmp_path / "d", "train")
    first = min(train, key=lambda t: hashlib.sha256(t.encode()).digest()[24:32])
    assert tokenizer.sha256 == train_bpe([first[:500]], 270).sha256


def test_remote_outputs_are_refused_and_the_home_folder_is_understood(
    corpus: Path, settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"output: .*s3://b/d.*local or mounted storage"):
        settings("s3://b/d")
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(corpus, tmp_path / "text")
    report = prepare(settings("~/d", source=FilesSource(path="~/text")))
    assert report.folder == str(tmp_path / "d")
    assert TokenDataset.open("~/d").dataset_id == report.dataset_id


@pytest.mark.parametrize(
    ("path", "said"), [("a\0b", "got 'a.x00b'; no path"), ("", "got an empty")]
)
def test_what_can_be_no_path_is_refused_with_its_key(path: str, said: str) -> None:
    tree = {"output": "d", "source": {"kind": "stdlib"}, "tokenizer": {"kind": "byte"}}
    kinds = ("files", "jsonl", "parquet", "hf_folder")
    odd: list[tuple[str, dict[str, object]]] = [("output", {"output": path})]
    odd += [("extends", {"extends": path, "tokenizer": None})]
    odd += [("tokenizer.path", {"tokenizer": {"kind": "huggingface", "path": path}})]
    odd += [("source.path", {"source": {"kind": kind, "path": path}}) for kind in kinds]
    for key, changes in odd:
        with pytest.raises(ConfigError, match=f"^{key}: {said}"):
            from_mapping(PrepareConfig, {**tree, **changes})


@pytest.mark.parametrize("name", ["prepare_demo.yaml", "prepare_bytes.yaml"])
def test_the_shipped_configs_say_what_they_make(name: str) -> None:
    config = load(PrepareConfig, CONFIGS / name).config
    first = (CONFIGS / name).read_text().splitlines()[0]
    assert first.startswith(f"# Makes {config.output}:")


@pytest.mark.slow
def test_the_demo_config_makes_real_text_of_megabytes(tmp_path: Path) -> None:
    changes = [f"output={tmp_path / 'd'}", "tokenizer.train_bytes=4_000_000"]
    config = load(PrepareConfig, CONFIGS / "prepare_demo.yaml", changes).config
    report = prepare(config)
    assert report.vocab_size == 4096
    assert sum(s.text_bytes for s in report.splits.values()) > 5e6
    valid = TokenDataset.open(tmp_path / "d", "valid")
    assert 2.5 < valid.text_bytes / valid.total_tokens < 6  # bytes per token of a BPE of 4096
    text = "".join(texts_of(tmp_path / "d", "valid")).encode()
    assert len(lzma.compress(text)) < len(text) / 3
    assert prepare(config).reused


@pytest.mark.parametrize("inside", ["", "sub", "a/../b/c"])
def test_a_dataset_is_not_put_among_its_text(settings: Make, tmp_path: Path, inside: str) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "x.txt").write_text("words")
    if not inside:
        (text / "x.txt").unlink()
    config = dataclasses.replace(
        settings(text / inside, tokenizer=ByteTokenizerConfig()),
        source=FilesSource(path=str(text)),
    )
    with pytest.raises(ConfigError, match=r"output: .* lies in source\.path"):
        prepare(config)
