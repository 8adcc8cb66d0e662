"""Exported folders, read by transformers and CTranslate2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import (
    EPS,
    LENGTH,
    LLAMA3,
    MOE,
    QWEN3,
    YARN,
    greedy,
    relative,
    some_ids,
    write_weights,
)
from safetensors.torch import load_file

from xtdist.checkpoint.huggingface import ExportOptions, export, take_over
from xtdist.checkpoint.weights import load_weights
from xtdist.config import CheckpointError, ConfigError, ResourceError
from xtdist.data import Tokenizer, byte_tokenizer, train_bpe
from xtdist.data.tokenizer import HuggingFaceTokenizerConfig, TiktokenTokenizerConfig
from xtdist.data.tokenizer.load import make_tokenizer

TEXTS = (
    "Hello world, it's 3.14!\n\n\tdef f(x):\n    return x  # naïve — 日本語 \U0001f389",
    "text that spells <|endoftext|> and <|mask|>",
    "  two  spaces ",
    "",
)
LIMIT = 1e-5  # of the largest logit, in fp32
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Llama", {}),
    "pairs as halves": ("Llama", {"position": {"layout": "halves"}}),
    "grouped queries": ("Llama", {"attention": {"kv_heads": 2}}),
    "own head dim": ("Llama", {"heads": 2, "attention": {"dim_head": 16, "kv_heads": 1}}),
    "heads that do not divide": ("Mistral", {"heads": 3, "attention": {"dim_head": 16}}),
    "head of its own": ("Llama", {"tie_embedding": False}),
    "scales of muP": ("Llama", {"mup": {"base_width": 16, "base_dim_head": 4}}),
    "linear": ("Llama", {"position": {"interpolation": 4.0}}),
    "ntk": ("Llama", {"position": {"theta_rescale": 4.0}}),
    "yarn": ("Llama", {"position": {"scaling": YARN}}),
    "llama3": ("Llama", {"position": {"scaling": LLAMA3}}),
    "all biases": (
        "Llama",
        {
            "attention": {"bias": True, "bias_out": True},
            "feedforward": {"bias_in": True, "bias_out": True},
        },
    ),
    "some biases": ("Llama", {"attention": {"bias_out": True}, "feedforward": {"bias_in": True}}),
    "plain gain": ("Llama", {"norm": {"kind": "rmsnorm", "unit_offset": False}}),
    "gelu": ("Llama", {"feedforward": {"kind": "glu", "activation": "gelu"}}),
    "window": ("Mistral", {"attention": {"window": 5}}),
    "biases of queries": ("Qwen2", {"attention": {"bias": True, "kv_heads": 2}}),
    "biases and a window": ("Qwen2", {"attention": {"bias": True, "window": 7}}),
    "normed queries": ("Qwen3", {"attention": {**QWEN3, "kv_heads": 2}, "norm": EPS}),
    "normed and a window": ("Qwen3", {"attention": {**QWEN3, "window": 7}, "norm": EPS}),
    "experts": ("Mixtral", {"feedforward": MOE}),
    "gpt2": ("GPT2", {}),
    "gpt2 with all": (
        "GPT2",
        {
            "attention": {"bias": True, "bias_out": True},
            "norm": {"kind": "layernorm", "bias": True, "unit_offset": False},
            "feedforward": {"kind": "mlp", "activation": "gelu_tanh", "mult": 3.0},
        },
    ),
}


def preset_of(name: str) -> str:
    return "gpt2-tiny" if name.startswith("gpt2") else "llama-tiny"


@pytest.mark.parametrize("name", CASES)
def test_transformers_computes_the_same_logits_and_the_way_back_is_exact(
    name: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    expected, changes = CASES[name]
    weights = write_weights(tmp_path / "ours", preset_of(name), **changes)
    export(weights, tmp_path / "hf")
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert type(theirs).__name__.startswith(expected)
    assert not any(report.values())  # nothing missing, nothing left over
    ours = load_weights(weights)
    ids = some_ids(ours.model.num_tokens)
    with torch.no_grad():
        logits, wanted = ours.model(ids), theirs.eval()(ids).logits
    assert relative(logits, wanted) <= LIMIT

    take_over(tmp_path / "hf", tmp_path / "back")
    back = load_weights(tmp_path / "back")
    with torch.no_grad():
        assert torch.equal(back.model(ids), logits)
    export(tmp_path / "back", tmp_path / "again")
    first, second = (load_file(tmp_path / f / "model.safetensors") for f in ("hf", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_a_model_without_offsets_comes_back_tensor_for_tensor(tmp_path: Path) -> None:
    norm = {"kind": "rmsnorm", "unit_offset": False}
    weights = write_weights(tmp_path / "ours", norm=norm, attention={"kv_heads": 2})
    export(weights, tmp_path / "hf")
    take_over(tmp_path / "hf", tmp_path / "back")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("ours", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


def foreign_tokenizer(folder: Path) -> Tokenizer:
    """Of a file whose formatting and order of keys nobody would choose."""
    spec = json.loads(train_bpe(["hello world, hello words"] * 9, 270).text)
    spec["added_tokens"][0]["content"] = "<eos>"
    raw = json.dumps(dict(reversed(spec.items())), indent=3)
    (folder / "their_tokenizer.json").write_text(raw)
    config = HuggingFaceTokenizerConfig(path=str(folder / "their_tokenizer.json"))
    return make_tokenizer(config, lambda: ())


@pytest.mark.parametrize("kind", ["byte", "bpe", "huggingface"])
def test_transformers_tokenizes_and_generates_the_same(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = {
        "byte": byte_tokenizer,
        "bpe": lambda: train_bpe(TEXTS * 20, 300),
        "huggingface": lambda: foreign_tokenizer(tmp_path),
    }[kind]()
    weights = write_weights(tmp_path / "ours", tokenizer=tokenizer)
    export(weights, tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in TEXTS:
        ids = tokenizer.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == tokenizer.decode(ids)
    assert theirs.eos_token_id == tokenizer.eot_id
    if kind == "huggingface":
        given = (tmp_path / "their_tokenizer.json").read_bytes()
        assert (tmp_path / "hf/tokenizer.json").read_bytes() == given
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    prompt = tokenizer.encode("hello wor").tolist()
    more = LENGTH - len(prompt)
    found = model.generate(torch.tensor([prompt]), max_new_tokens=more)[0].tolist()
    assert found == prompt + greedy(load_weights(weights), prompt, more)

    take_over(tmp_path / "hf", tmp_path / "back")
    assert load_weights(tmp_path / "back").tokenizer.sha256 == tokenizer.sha256
    before, after = (tmp_path / f / "tokenizer.json" for f in ("ours", "back"))
    assert before.read_bytes() == after.read_bytes()


@pytest.mark.parametrize("name", ["grouped queries", "linear", "normed queries", "gpt2"])
def test_ctranslate2_runs_it_with_the_same_logits_and_tokens(name: str, tmp_path: Path) -> None:
    import ctranslate2
    import numpy as np

    tokenizer = train_bpe(TEXTS * 20, 300)
    weights = write_weights(
        tmp_path / "ours", preset_of(name), tokenizer=tokenizer, **CASES[name][1]
    )
    export(weights, tmp_path / "hf")
    converter = ctranslate2.converters.TransformersConverter(str(tmp_path / "hf"))
    converter.convert(str(tmp_path / "ct2"))
    theirs = ctranslate2.Generator(str(tmp_path / "ct2"), compute_type="float32", intra_threads=1)
    ours = load_weights(weights)
    ids = some_ids(256, rows=1)
    logits = torch.tensor(np.array(theirs.forward_batch(ids.tolist())))
    with torch.no_grad():
        assert relative(logits, ours.model(ids)) <= LIMIT
    vocab = {i: t for t, i in json.loads(tokenizer.text)["model"]["vocab"].items()}
    prompt = tokenizer.encode("hello wor").tolist()
    found = theirs.generate_batch(
        [[vocab[i] for i in prompt]],
        max_length=20,
        sampling_topk=1,
        include_prompt_in_result=False,
        end_token=[tokenizer.eot_id],
        suppress_sequences=[["<|mask|>"], ["<|pad|>"]],
    )
    assert found[0].sequences_ids[0] == greedy(ours, prompt, 20)


def test_large_models_are_cut_into_files_that_an_index_names(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    weights = write_weights(tmp_path / "ours")
    export(weights, tmp_path / "one")
    export(weights, tmp_path / "several", ExportOptions(max_shard_gb=1e-4))
    index = json.loads((tmp_path / "several/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    whole = load_file(tmp_path / "one/model.safetensors")
    parts = {n: t for f in files for n, t in load_file(tmp_path / "several" / f).items()}
    assert parts.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(parts[n], whole[n]) for n in whole)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "several") is not None
    take_over(tmp_path / "several", tmp_path / "back")
    assert load_weights(tmp_path / "back").model is not None


def test_the_type_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "ours")
    export(weights, tmp_path / "hf", ExportOptions(dtype="bfloat16"))
    tensors = load_file(tmp_path / "hf/model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "hf/config.json").read_text())["torch_dtype"] == "bfloat16"
    exact = load_file(tmp_path / "ours/model.safetensors")["token_embedding.weight"]
    assert torch.equal(tensors["model.embed_tokens.weight"], exact.bfloat16())


def test_a_chat_template_goes_there_and_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    weights = write_weights(tmp_path / "ours", chat=template)
    export(weights, tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], return_dict=False)
    assert ids == [*b"Hi", byte_tokenizer().eot_id]
    take_over(tmp_path / "hf", tmp_path / "back")
    assert (tmp_path / "back/chat_template.jinja").read_text() == template.read_text()


def test_what_is_no_architecture_of_theirs_is_refused_with_every_reason(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "ours", attention={"sink": True}, logit_scale=0.5)
    with pytest.raises(CheckpointError) as refused:
        export(weights, tmp_path / "hf")
    assert "model.attention.sink: got true, must be false" in str(refused.value)
    assert "model.logit_scale: got 0.5, must be 1.0" in str(refused.value)
    assert not (tmp_path / "hf").exists()


def test_nothing_is_overwritten_and_nothing_half_written_is_left(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "ours")
    export(weights, tmp_path / "hf")
    before = (tmp_path / "hf/config.json").stat().st_mtime_ns
    with pytest.raises(ResourceError, match="there already"):
        export(weights, tmp_path / "hf")
    assert (tmp_path / "hf/config.json").stat().st_mtime_ns == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "ours"]
    with pytest.raises(ConfigError, match="max-shard-gb"):
        export(weights, tmp_path / "other", ExportOptions(max_shard_gb=0))
    with pytest.raises(ConfigError, match="max-shard-gb"):
        export(weights, tmp_path / "other", ExportOptions(max_shard_gb=float("inf")))


def test_a_tokenizer_without_their_file_is_refused(tmp_path: Path) -> None:
    import base64

    ranks = "\n".join(f"{base64.b64encode(bytes([b])).decode()} {b}" for b in range(256))
    (tmp_path / "ranks").write_text(ranks)
    config = TiktokenTokenizerConfig(
        path=str(tmp_path / "ranks"), pattern="gpt2", special={"<|endoftext|>": 256}
    )
    weights = write_weights(tmp_path / "ours", tokenizer=make_tokenizer(config, lambda: ()))
    with pytest.raises(CheckpointError, match="tokenizer: got kind tiktoken"):
        export(weights, tmp_path / "hf")
