"""Runs that begin with weights: their own, or taken over from Hugging Face's world."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ranks import run_ranks
from runs import checkpoints, steps_of
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
from hf_folders import write_weights

from xtdist.checkpoint.huggingface import export, take_over
from xtdist.checkpoint.start import start_from
from xtdist.config import CheckpointError, ConfigError, DataError, load
from xtdist.data import train_bpe
from xtdist.launch.preflight import preflight, resolve
from xtdist.model.wrapper import build_model
from xtdist.train import RunSpec


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Taken over from an export: the byte tokenizer, that of the dataset, and another model than
    any default."""
    export(write_weights(tmp_path / "first", attention={"kv_heads": 2}), tmp_path / "hf")
    take_over(tmp_path / "hf", tmp_path / "weights")
    return tmp_path / "weights"


def planned(dataset: Path, weights: Path, **changes: Any) -> RunSpec:
    tree: dict[str, Any] = {
        "name": "tuned",
        "output": str(weights.parent / "runs"),
        "data": {"path": str(dataset), "seq_len": 16},
        "model": {"preset": f"weights:{weights}"},
        "optim": {"schedule": {"kind": "constant", "warmup_steps": 1}},
        "batch": {"tokens_per_step": 64},
        "loop": {"steps": 2},
        "engine": {"precision": "fp32"},
        "checkpoint": {"start_from": str(weights)},
    }
    file = weights.parent / "run.yaml"
    file.write_text(yaml.safe_dump({**tree, **changes}))
    return preflight(resolve(load(RunSpec, file).config), cluster_gpus=0).spec


def test_a_run_takes_the_model_of_weights_and_a_place_that_stays(
    dataset: Path, weights: Path
) -> None:
    spec = planned(dataset, weights)
    assert spec.model.attention.kv_heads == 2
    assert spec.model.max_seq_len == 48
    assert spec.checkpoint.start_from == str(weights.resolve())


def test_a_network_gets_the_numbers_in_its_own_type(weights: Path, dataset: Path) -> None:
    net = build_model(planned(dataset, weights).model)
    start_from(net, weights)
    saved = load_file(weights / "model.safetensors")
    assert all(torch.equal(t, saved[n]) for n, t in net.state_dict().items() if n in saved)
    start_from(net.bfloat16(), weights)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}


def test_how_the_model_is_trained_may_differ_and_what_it_computes_may_not(
    dataset: Path, weights: Path
) -> None:
    model = {"preset": f"weights:{weights}", "emb_dropout": 0.1, "max_seq_len": 32}
    assert planned(dataset, weights, model=model).model.max_seq_len == 32
    with pytest.raises(CheckpointError, match=r"model\.depth: the weights' 2, this run's 3"):
        planned(dataset, weights, model={**model, "depth": 3})
    with pytest.raises(ConfigError, match="weights:nowhere"):
        planned(dataset, weights, model={"preset": "weights:nowhere"})


def test_data_of_another_tokenizer_is_refused_and_changed_weights_are_too(
    dataset: Path, weights: Path
) -> None:
    other = write_weights(weights.parent / "other", tokenizer=train_bpe(["ab ab ab"] * 9, 262))
    with pytest.raises(DataError, match=r"checkpoint\.start_from: the tokenizer"):
        planned(dataset, other)
    net = build_model(planned(dataset, weights).model)
    raw = bytearray((weights / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (weights / "model.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError):
        start_from(net, weights)


@pytest.mark.slow
def test_training_begins_with_the_weights_and_a_run_that_goes_on_does_not_read_them(
    dataset: Path, weights: Path
) -> None:
    constant = {"kind": "constant", "warmup_steps": 1}
    still = {"lr": 1e-30, "weight_decay": 0.0, "schedule": constant}
    spec = planned(dataset, weights, optim=still, workers={"count": 1, "device": "cpu"})
    longer = dataclasses.replace(spec, loop=dataclasses.replace(spec.loop, steps=3))
    longer = dataclasses.replace(
        longer, checkpoint=dataclasses.replace(spec.checkpoint, start_from="/nowhere")
    )
    for outcome in run_ranks([spec, longer]):
        assert outcome.ok, outcome.printed
    begun = load_file(weights / "model.safetensors")
    for checkpoint in checkpoints(spec):
        found = load_file(checkpoint / "weights/model.safetensors")
        assert found.keys() == begun.keys()
        assert all(torch.equal(found[n], begun[n]) for n in begun)
    assert steps_of(spec)[-1] == 3
