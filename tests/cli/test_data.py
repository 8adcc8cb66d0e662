"""xtdist data: verify, show, trace and copy, on small datasets."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import yaml

from xtdist.config import load
from xtdist.data import TokenDataset, open_view, read_manifest
from xtdist.train.spec import RunSpec


@pytest.fixture
def copied(xtdist, datasets, tmp_path):
    """A dataset of its own, made by ``copy``."""
    ended = xtdist("data", "copy", datasets / "byte", tmp_path / "copy")
    assert ended.code == 0, ended.err
    assert "shards copied, 0 there already" in ended.out
    return tmp_path / "copy"


@pytest.fixture
def mixture(make_config, datasets, copied):
    """The YAML of a run on two corpora, packed."""
    path = make_config({"data.documents": "packed"})
    tree = yaml.safe_load(path.read_text())
    del tree["data"]["path"]
    tree["data"]["corpora"] = {
        "a": {"path": str(datasets / "byte"), "weight": 3},
        "b": {"path": str(copied), "weight": 1},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_copy_is_the_same_dataset(xtdist, datasets, copied):
    assert read_manifest(copied).dataset_id == read_manifest(datasets / "byte").dataset_id
    again = xtdist("data", "copy", datasets / "byte", copied)
    assert "0 shards copied" in again.out


def test_a_sound_dataset_is_verified(xtdist, copied):
    ended = xtdist("data", "verify", copied)
    manifest = read_manifest(copied)
    assert ended.code == 0
    assert f"dataset {manifest.dataset_id[:12]} in {copied} is as it was made" in ended.out
    assert f"{manifest.build.documents:,} documents" in ended.out


def test_every_damage_is_named_in_one_message(refused, copied):
    for split in ("train", "valid"):
        shard = next(copied.glob(f"{split}*.arrow"))
        raw = bytearray(shard.read_bytes())
        raw[len(raw) // 2] ^= 1
        shard.write_bytes(raw)
    message = refused("data", "verify", copied)
    assert all(next(copied.glob(f"{s}*.arrow")).name in message for s in ("train", "valid"))


def test_no_dataset_is_a_users_mistake(refused, tmp_path):
    for words in (("verify",), ("show",)):
        message = refused("data", *words, tmp_path / "no")
        assert f"{tmp_path / 'no'}: no such folder" in message
    assert "has no manifest.json" in refused("data", "copy", tmp_path / "no", tmp_path / "to")


def test_a_dataset_is_shown(xtdist, datasets):
    manifest = read_manifest(datasets / "byte")
    out = xtdist("data", "show", datasets / "byte").out
    assert f"dataset {manifest.dataset_id} in " in out
    assert "tokenizer byte, 259 ids as uint16" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    for split in ("train", "valid"):
        data = TokenDataset.open(datasets / "byte", split)
        assert rows[split][1:3] == [f"{data.num_documents:,}", f"{data.total_tokens:,}"]
    shown = json.loads(xtdist("data", "show", datasets / "byte", "--json").out)
    assert shown["dataset_id"] == manifest.dataset_id
    assert shown["manifest"]["build"]["documents"] == manifest.build.documents
    bars = sum(line.count("█") > 0 for line in out.splitlines())
    assert bars == len(shown["report"]["document_tokens"]) > 0


def test_a_dataset_without_a_report_is_shown_too(xtdist, copied):
    (copied / "report.json").unlink(missing_ok=True)
    ended = xtdist("data", "show", copied)
    assert ended.code == 0
    assert "█" not in ended.out
    assert json.loads(xtdist("data", "show", copied, "--json").out)["report"] is None


@pytest.mark.parametrize(
    "report",
    [
        "[]",
        "5",
        "null",
        '{"left_out": 3}',
        '{"left_out": {}, "document_tokens": 3}',
        '{"left_out": {}, "document_tokens": [{"documents": 0}]}',
        "[" * 9999,
    ],
)
def test_a_damaged_report_is_left_out(xtdist, copied, report):
    (copied / "report.json").write_text(report)
    ended = xtdist("data", "show", copied)
    assert ended.code == 0
    assert "report.json is missing or damaged" in ended.out


def test_a_trace_names_the_documents_that_the_batch_holds(xtdist, mixture, text):
    """By the text: the pieces, decoded, stand in the document with that digest."""
    found = json.loads(xtdist("data", "trace", mixture, "--step", 5, "--json").out)
    rows = found["rows"]
    assert (found["step"], found["data_step"]) == (5, 5)
    spec = load(RunSpec, mixture).config
    view = open_view(spec.data, seq_len=16, seed=spec.seed, global_batch=spec.global_batch)
    samples = view.order.samples(5)
    assert [row["sample_id"] for row in rows] == samples.ids.tolist() == [20, 21, 22, 23]
    assert [row["corpus"] for row in rows].count("b") == 1
    raw = {hashlib.sha256(p.read_bytes()).hexdigest()[:32]: p.read_bytes() for p in text.iterdir()}
    for row, index, corpus in zip(rows, samples.index, samples.corpus, strict=True):
        tokens = np.empty((1, 17), np.uint16)
        view.windows[corpus].fill(np.array([index]), tokens, None)
        for piece in row["pieces"]:
            width = piece["stop"] - piece["start"]
            part = tokens[0, piece["column"] : piece["column"] + width]
            want = raw[piece["doc_id"]][piece["start"] : piece["stop"]]
            assert view.tokenizer.decode_bytes(part) == want


def test_a_trace_is_a_table_of_any_workers_rows(xtdist, mixture):
    said, *whole = xtdist("data", "trace", mixture, "--step", 10**9).out.splitlines()
    assert said == "training step 1000000000 reads step 1000000000 of the data"
    assert whole[0].split()[:4] == ["row", "sample", "corpus", "window"]
    parts = []
    for rank in range(3):
        words = ("--step", 10**9, "--rank", rank, "--world", 3)
        parts += [
            line.split() for line in xtdist("data", "trace", mixture, *words).out.split("\n")[2:]
        ]
    assert [line for line in parts if line] == [line.split() for line in whole[1:]]
    by_default = xtdist("data", "trace", mixture, "--step", 3, "--rank", 1, "--json").out
    assert [row["row"] for row in json.loads(by_default)["rows"]] == [2, 3]
    other = xtdist("data", "trace", mixture, "seed=9", "--step", 3, "--rank", 1, "--json").out
    assert other != by_default


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--step", -1), "--step: got -1; steps are counted from 0"),
        (("--step", 2**62), "steps are counted from 0 to 1099511627775"),
        (("--step", 10**19), "steps are counted from 0 to 1099511627775"),
        (("--step", 0, "data.skip=[[0, 9000000000000000000]]"), "data.skip"),
        (("--step", 0, "--rank", 2), "rank 2: there are 2 ranks"),
        (("--step", 0, "--world", 2), "--world: got 2 without a rank"),
        (("--step", 0, "data.seq_len=100000", "batch.tokens_per_step=200000"), "shorter than one"),
    ],
)
def test_a_trace_of_what_there_is_not_is_refused(refused, make_config, words, said):
    assert said in refused("data", "trace", make_config(), *words)
