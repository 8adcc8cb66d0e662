"""Weights, prompts and addresses that don't work; and the same commands where they do."""

from __future__ import annotations

import json
import socket

import pytest

from xtdist.serve import new_key


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "words", [("evaluate", "--data", "d"), ("generate", "--prompt", "x"), ("serve",)]
)
def test_weights_that_are_not_there_are_named(refused, tmp_path, words):
    verb, *rest = words
    (tmp_path / "run").mkdir()
    for folder in (tmp_path / "no", tmp_path / "run"):
        message = refused(verb, folder, *rest)
        assert f"{folder}: no weights there; give a run folder, a checkpoint" in message


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("words", [("evaluate", "--data", "d"), ("generate", "--prompt", "x")])
def test_weights_with_one_changed_byte_are_refused(refused, save_model, words, name):
    verb, *rest = words
    folder = save_model("weights")
    flip(folder / name)
    assert f"{folder / name}: its content (sha256) is" in refused(verb, folder, *rest)


def test_every_method_of_a_decoder_writes_something(xtdist, save_model):
    expert, amateur = save_model("expert"), save_model("amateur")
    ended = xtdist("generate", expert, "--prompt", "def ", "--max-tokens", 5, "--amateur", amateur)
    assert ended.code == 0
    parts = ended.out.split("--- ")
    assert [p.split("\n")[0] for p in parts[1:]] == ["greedy", "sample", "beam", "contrastive"]
    assert all(p.split("\n", 1)[1].startswith("def ") for p in parts[1:])


def test_the_same_seed_writes_the_same(xtdist, save_model):
    words = ("generate", save_model("w"), "--prompt", "def ", "--method", "sample", "--max-tokens")
    first, again, other = (xtdist(*words, 20, "--seed", s).out for s in (1, 1, 2))
    assert first == again != other


def test_contrast_needs_an_amateur(refused, save_model):
    message = refused("generate", save_model("w"), "--prompt", "x", "--method", "contrastive")
    assert message == (
        "error: method: got 'contrastive'; this model can do greedy, sample, beam; give --amateur\n"
    )


def test_an_amateur_with_another_tokenizer_is_refused(refused, save_model):
    expert, amateur = save_model("expert"), save_model("amateur", tokenizer="bpe", num_tokens=270)
    message = refused("generate", expert, "--prompt", "x", "--amateur", amateur)
    assert f"{amateur} has another tokenizer than {expert}" in message
    message = refused("serve", expert, "--amateur", amateur)
    assert f"the amateur {amateur} has another tokenizer than {expert}" in message


def test_a_method_of_the_other_kind_of_model_is_refused(refused, save_model):
    decoder, encoder = save_model("ar"), save_model("nar", kind="nonautoregressive")
    message = refused("generate", decoder, "--prompt", "x", "--method", "mask-predict")
    assert "method: got 'mask-predict'; this model can do greedy, sample, beam" in message
    message = refused("generate", encoder, "--prompt", "x", "--method", "greedy")
    assert "method: got 'greedy'; this model can do mask-predict" in message
    message = refused("generate", encoder, "--prompt", "x", "--amateur", decoder)
    assert "amateur: a model that fills masks has no contrastive decoding" in message


@pytest.mark.parametrize("kind", ["autoregressive", "nonautoregressive"])
def test_a_prompt_that_is_too_long_is_refused(refused, save_model, kind):
    message = refused("generate", save_model("w", kind=kind), "--prompt", "x" * 40)
    assert "prompt" in message
    assert "40" in message
    assert "32" in message


def test_an_empty_prompt_is_refused_by_a_decoder(refused, save_model):
    message = refused("generate", save_model("w"), "--prompt", "", "--max-tokens", 4)
    assert "prompt: it is empty" in message


@pytest.mark.parametrize("kind", ["autoregressive", "nonautoregressive"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-tokens", 0),
        ("--max-tokens", -1),
        ("--temperature", -1),
        ("--temperature", "nan"),
    ],
)
def test_a_number_out_of_range_is_refused(refused, save_model, kind, option, value):
    words = {"--max-tokens": 4, option: value}
    flat = [w for pair in words.items() for w in pair]
    message = refused("generate", save_model("w", kind=kind), "--prompt", "x", *flat)
    assert option.strip("-").replace("-", "_") in message


@pytest.mark.parametrize(
    ("kind", "option", "value", "said"),
    [
        ("autoregressive", "--top-p", 1.5, "top_p"),
        ("autoregressive", "--num-beams", 0, "num_beams"),
        ("autoregressive", "--num-beams", 9999, "num_beams"),
        ("nonautoregressive", "--steps", 0, "steps"),
    ],
)
def test_a_number_out_of_the_range_of_a_method_is_refused(
    refused, save_model, kind, option, value, said
):
    words = ("--prompt", "x", "--max-tokens", 4, option, value)
    assert said in refused("generate", save_model("w", kind=kind), *words)


def test_a_port_in_use_is_said_before_anything_starts(refused, save_model, monkeypatch, tmp_path):
    monkeypatch.setattr("xtdist.serve.server.connect", lambda *a: pytest.fail("it started Ray"))
    weights = save_model("weights")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = refused("serve", weights, "--port", port)
    assert f"127.0.0.1:{port}: can't listen there (Address already in use)" in message
    assert "port" in refused("serve", weights, "--port", 99999)
    (tmp_path / "keys").write_text(new_key("me")[1])
    elsewhere = ("--host", "203.0.113.1", "--api-keys-file", tmp_path / "keys")
    assert "203.0.113.1:8000: can't listen there" in refused("serve", weights, *elsewhere)


def test_serving_needs_one_model_and_no_amateur_for_one_that_fills_masks(
    refused, save_model, tmp_path
):
    assert "give one of: weights, --model NAME=WEIGHTS, --config FILE" in refused("serve")
    weights = save_model("weights")
    message = refused("serve", weights, "--config", tmp_path / "x.yaml")
    assert "--config" in message
    encoder = save_model("nar", kind="nonautoregressive")
    assert "leave out the amateur" in refused("serve", encoder, "--amateur", weights)


@pytest.mark.usefixtures("cluster_of_two")
def test_more_replicas_than_cpus_are_refused(refused, save_model, tmp_path):
    config = tmp_path / "serve.yaml"
    config.write_text(
        json.dumps({"models": [{"name": "m", "weights": str(save_model("w"))}], "port": 18235})
    )
    message = refused("serve", "--config", config, "--set", "replicas=3")
    assert "replicas: 3 with 1 CPU each need 3 CPUs; the cluster has 2" in message


def test_a_run_without_metrics_has_no_plot(refused, tmp_path):
    (tmp_path / "run").mkdir()
    assert f"{tmp_path / 'run'}: no metrics.jsonl there" in refused("plot", tmp_path / "run")
