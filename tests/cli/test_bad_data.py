"""Corpora, datasets and disks that are not as they should be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from xtdist.checkpoint import CheckpointStore
from xtdist.checkpoint.layout import write_manifest
from xtdist.config import load
from xtdist.launch.datasets import known_data
from xtdist.launch.preflight import resolve
from xtdist.train import RunSpec
from xtdist.train.state import identity


@pytest.fixture
def prepare_config(tmp_path: Path) -> Path:
    path = tmp_path / "prepare.yaml"
    config = {
        "output": str(tmp_path / "dataset"),
        "source": {"kind": "files", "path": str(tmp_path / "text")},
        "tokenizer": {"kind": "byte"},
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def own(datasets: Path, tmp_path: Path) -> Path:
    """A copy of the byte dataset that a test may damage."""
    return Path(shutil.copytree(datasets / "byte", tmp_path / "own"))


def flip(path: Path, offset: int = -200) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)


def test_a_corpus_that_is_not_there_is_named(refused, prepare_config, tmp_path):
    assert f"source.path: {tmp_path / 'text'} does not exist" in refused("prepare", prepare_config)


@pytest.mark.parametrize(
    ("files", "said"),
    [({}, "no file in"), ({"a.md": "text"}, "no file in"), ({"a.txt": "", "b.txt": ""}, "text")],
)
def test_an_empty_corpus_is_refused(refused, prepare_config, tmp_path, files, said):
    (tmp_path / "text").mkdir()
    for name, content in files.items():
        (tmp_path / "text" / name).write_text(content)
    assert said in refused("prepare", prepare_config)


def test_text_that_is_not_utf_8_is_named(refused, prepare_config, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(b"abc\xff")
    message = refused("prepare", prepare_config)
    assert f"{tmp_path / 'text' / 'a.txt'}: not UTF-8 text (byte 3)" in message


def test_a_full_disk_is_said_before_a_dataset_is_written(
    refused, text, prepare_config, tmp_path, monkeypatch
):
    shutil.copytree(text, tmp_path / "text")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_000_000))
    message = refused("prepare", prepare_config, "valid_fraction=0.3")
    assert "no space left" in message
    assert "needs about 17 MB, 3 MB are free" in message


def test_a_dataset_that_is_not_there_is_named(refused, make_config, tmp_path):
    config = make_config({"data.path": str(tmp_path / "no")})
    message = refused("train", config)
    assert f"{tmp_path / 'no'}: no such folder; make the dataset first: xtdist prepare" in message


def test_a_folder_without_a_manifest_is_no_dataset(refused, make_config, own, save_model):
    (own / "manifest.json").unlink()
    weights = save_model("weights")
    config = make_config({"data.path": str(own)})
    assert f"{own}: has no manifest.json" in refused("train", config)
    assert f"{own}: has no manifest.json" in refused("evaluate", weights, "--data", own)


def test_a_changed_manifest_is_refused(refused, make_config, own):
    path = own / "manifest.json"
    path.write_text(path.read_text().replace('"vocab_size"', '"vocab_sise"'))
    assert str(path) in refused("train", make_config({"data.path": str(own)}))


def test_a_shard_that_was_cut_is_refused(refused, make_config, own):
    shard = next(own.glob("train*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert str(shard) in refused("train", make_config({"data.path": str(own)}))


def test_a_shard_with_one_changed_byte_is_refused(refused, own, save_model):
    shard = next(own.glob("valid*.arrow"))
    weights = save_model("weights")
    flip(shard, shard.stat().st_size // 2)
    message = refused("evaluate", weights, "--data", own)
    assert str(shard) in message
    assert "sha256" in message


def test_a_tokenizer_of_another_dataset_is_refused(refused, make_config, own, datasets, save_model):
    shutil.copyfile(datasets / "bpe" / "tokenizer.json", own / "tokenizer.json")
    weights = save_model("weights")
    for words in (
        ("train", make_config({"data.path": str(own)})),
        ("evaluate", weights, "--data", own),
    ):
        message = refused(*words)
        assert str(own / "tokenizer.json") in message
        assert "not the tokenizer that this dataset was made with" in message


def test_data_of_another_tokenizer_than_the_models_is_refused(refused, save_model, datasets):
    message = refused("evaluate", save_model("weights"), "--data", datasets / "bpe")
    assert "evaluate on data made with the model's tokenizer" in message


def checkpoint(config: Path, *, step: int = 2, **changes: object) -> Path:
    """A checkpoint of the run of ``config``, as far as a manifest makes one."""
    spec = resolve(load(RunSpec, config).config)
    own = identity(spec, known_data(spec), precision="fp32", step=step)
    own["data"] |= changes
    folder = Path(spec.output) / spec.name / "checkpoints" / f"step_{step:08d}-{'0' * 8}"
    folder.mkdir(parents=True)
    write_manifest(folder, {}, {"kind": "checkpoint", "step": step, "identity": own})
    assert CheckpointStore(folder.parent).names() == [folder.name]
    return folder


@pytest.mark.usefixtures("cluster_of_two")
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.dim", 32, "model.dim: checkpoint 16, config 32"),
        ("model.depth", 2, "model.depth: checkpoint 1, config 2"),
        ("data.seq_len", 32, "data.seq_len: checkpoint 16, config 32"),
        ("seed", 5, "seed: checkpoint 0, config 5"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(refused, make_config, key, value, said):
    folder = checkpoint(make_config())
    message = refused("train", make_config({key: value}))
    assert f"{folder} is of another run" in message
    assert said in message
    assert "Give the run another name, put these keys back, or go back to a checkpoint" in message


@pytest.mark.usefixtures("cluster_of_two")
def test_a_checkpoint_of_another_dataset_is_refused(refused, make_config):
    config = make_config()
    checkpoint(config, dataset_id="0" * 64)
    assert "data.dataset_id: checkpoint '0000" in refused("train", config)


@pytest.mark.usefixtures("cluster_of_two")
def test_a_finished_run_has_nothing_to_train(xtdist, make_config):
    """The same fabricated checkpoint is accepted where it fits."""
    config = make_config()
    folder = checkpoint(config, step=4)
    ended = xtdist("train", config)
    assert ended.code == 0
    assert "already at step 4 of 4: nothing to train" in ended.out
    assert list(folder.parent.parent.iterdir()) == [folder.parent]


@pytest.mark.usefixtures("cluster_of_two")
def test_more_workers_than_cpus_are_refused(refused, make_config):
    message = refused("train", make_config({"workers.count": 3}))
    assert "workers.count: 3 with 1 CPU each need 3 CPUs; the cluster has 2" in message
    assert "Set workers.count to at most 2" in message
    message = refused("train", make_config({"workers.cpus": 2}))
    assert "workers.count: 2 with 2 CPU each need 4 CPUs; the cluster has 2" in message


@pytest.mark.usefixtures("cluster_of_two")
def test_a_gpu_that_the_cluster_does_not_have_is_refused(refused, make_config):
    assert "workers.device: got 'gpu'" in refused("train", make_config({"workers.device": "gpu"}))
    message = refused("train", make_config({"engine.precision": "fp16"}))
    assert "engine.precision: got 'fp16'" in message


@pytest.mark.usefixtures("cluster_of_two")
def test_a_disk_too_full_for_two_checkpoints_is_said_first(refused, make_config, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    message = refused("train", make_config())
    assert "two checkpoints (one kept, one being written) need about 2 MB" in message
    assert "the disk has 1 MB free" in message
    assert "set output to another disk" in message
