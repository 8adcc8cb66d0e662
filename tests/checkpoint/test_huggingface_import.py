"""Models of transformers, with random weights, taken over; and folders not to be trusted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import greedy, randomize, relative
from safetensors.torch import load_file, save_file

from xtdist.checkpoint.huggingface import ImportOptions, export, take_over
from xtdist.checkpoint.weights import load_weights
from xtdist.config import CheckpointError, ConfigError, UserError
from xtdist.data import train_bpe

SIZES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 300, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama tied": ("Llama", {"tie_word_embeddings": True, "head_dim": 8}),
    "llama biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "mistral without window": ("Mistral", {"sliding_window": None}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gpt2": ("GPT2", {}),
}


def write_theirs(folder: Path, name: str = "llama", **more: Any) -> Any:
    """A folder as transformers saves it, with a tokenizer; the model."""
    import transformers

    kind, changes = CASES[name]
    sizes = GPT2 if kind == "GPT2" else SIZES
    tokenizer = train_bpe(["hello world, hello words of text "] * 30, 300)
    config = getattr(transformers, f"{kind}Config")(
        **{**sizes, "bos_token_id": None, "eos_token_id": tokenizer.eot_id, **changes, **more}
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    randomize(model)
    model.save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    return model


@pytest.mark.parametrize("name", CASES)
def test_a_model_of_transformers_has_the_same_logits_here_and_its_tensors_come_back(
    name: str, tmp_path: Path
) -> None:
    theirs = write_theirs(tmp_path / "hf", name)
    take_over(tmp_path / "hf", tmp_path / "ours")
    ours = load_weights(tmp_path / "ours")
    ids = torch.randint(0, 300, (2, 50), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert relative(ours.model(ids), theirs(ids).logits) <= 1e-5
    export(tmp_path / "ours", tmp_path / "again")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("hf", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_generation_goes_on_as_theirs_does(tmp_path: Path) -> None:
    theirs = write_theirs(tmp_path / "hf", "mistral")
    take_over(tmp_path / "hf", tmp_path / "ours")
    ours = load_weights(tmp_path / "ours")
    prompt = ours.tokenizer.encode("hello wor").tolist()
    never = [ours.tokenizer.mask_id, ours.tokenizer.pad_id, *range(ours.tokenizer.vocab_size, 300)]
    found = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=30, do_sample=False, suppress_tokens=never
    )[0].tolist()
    end = ours.tokenizer.eot_id
    found = found[: found.index(end) + 1] if end in found else found
    assert found == prompt + greedy(ours, prompt, 30)


def test_a_vocabulary_without_mask_and_padding_stays_as_it_is(tmp_path: Path) -> None:
    """As GPT-2's: one special token, and embeddings for exactly its ids."""
    spec = json.loads(train_bpe(["hello world, hello words"] * 9, 270).text)
    spec["added_tokens"] = spec["added_tokens"][:1]
    end = spec["added_tokens"][0]["id"]
    theirs = write_theirs(tmp_path / "hf", "gpt2", vocab_size=end + 1, eos_token_id=end)
    (tmp_path / "hf/tokenizer.json").write_text(json.dumps(spec))
    take_over(tmp_path / "hf", tmp_path / "ours")
    ours = load_weights(tmp_path / "ours")
    assert (ours.model.num_tokens, ours.tokenizer.vocab_size) == (end + 1, end + 3)
    prompt = ours.tokenizer.encode("hello wor").tolist()
    found = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0].tolist()
    assert found[: len(prompt) + 20] == prompt + greedy(ours, prompt, 20)


def change(**keys: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tree = json.loads((folder / "config.json").read_text())
        tree |= keys
        tree = {key: value for key, value in tree.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(tree))

    return apply


def add_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.secret.weight"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def swap_rows(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    stem = "model.layers.0.self_attn"
    both = torch.cat([tensors[f"{stem}.{x}_proj.weight"] for x in "kv"])
    tensors[f"{stem}.k_proj.weight"] = both[:16].clone()
    tensors[f"{stem}.v_proj.weight"] = both[16:].clone()
    save_file(tensors, folder / "model.safetensors")


def nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def eight_bits(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    eight = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}
    save_file(eight, folder / "model.safetensors")


def another_tokenizer(folder: Path) -> None:
    tokenizer = train_bpe(["a b c d e " + chr(i) * 2 for i in range(33, 127)], 400)
    tokenizer.save(folder / "tokenizer.json")
    change(eos_token_id=tokenizer.eot_id)(folder)


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index_outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    index = {"weight_map": {"model.norm.weight": "../x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "another architecture": (change(model_type="bert"), "model_type is 'bert'"),
    "unknown key": (change(attention_multiplier=2.0), "attention_multiplier"),
    "its own code": (change(auto_map={"AutoModel": "x.Y"}), "auto_map.*never run"),
    "quantized": (change(quantization_config={"bits": 4}), "quantization_config"),
    "unknown scaling": (
        change(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2}),
        "rope_type 'dynamic'",
    ),
    "unknown activation": (change(hidden_act="xielu"), "hidden_act is 'xielu'"),
    "too deep": (change(num_hidden_layers=10**8), "depth.*more than"),
    "too wide": (
        change(intermediate_size=10**7),
        "no saved tensor|numbers, its tensors hold",
    ),
    "no number": (change(hidden_size="large"), "hidden_size is 'large'"),
    "missing key": (change(rms_norm_eps=...), "rms_norm_eps is missing"),
    "sizes whose sum is right": (swap_rows, "self_attn.k_proj.weight: its shape.*16, 48.*24 rows"),
    "not a number": (nan, "model.norm.weight has NaN or infinity"),
    "eight bits": (eight_bits, "tensors of torch.float8_e4m3fn"),
    "end out of the vocabulary": (change(eos_token_id=10**9), "eos_token_id is 1000000000"),
    "end that is no number": (change(eos_token_id={"a": 1}), "eos_token_id"),
    "scaling without a name": (
        change(rope_parameters={"rope_type": [], "rope_theta": 1e4}),
        "rope_type is",
    ),
    "other size": (change(intermediate_size=64), "shape does not fit"),
    "tensor too much": (add_tensor, "unknown, 'model.layers.0.self_attn.secret.weight'"),
    "tensor missing": (drop_tensor, "missing, 'model.norm.weight'"),
    "pickled": (pickle_only, "pytorch_model.bin is a pickle.*save_pretrained"),
    "outside": (index_outside, "something else than files beside it"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "no JSON": (lambda f: (f / "config.json").write_bytes(b"{" * 9) and None, "not JSON"),
    "small vocabulary": (
        another_tokenizer,
        "do not belong together",
    ),
}


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs") / "hf"
    write_theirs(folder)
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_known_is_refused_by_name_and_nothing_is_written(
    name: str, llama_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama_folder, tmp_path / "hf")
    spoil, said = WRONG[name]
    spoil(tmp_path / "hf")
    with pytest.raises(UserError, match=f"(?s){said}"):
        take_over(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_mixture_of_one_expert_is_another_model_there(tmp_path: Path) -> None:
    write_theirs(tmp_path / "hf", "mixtral", num_experts_per_tok=1)
    with pytest.raises(CheckpointError, match="num_experts_per_tok is 1"):
        take_over(tmp_path / "hf", tmp_path / "ours")


def test_what_prompts_and_ends_are_there_and_not_here_is_said(
    llama_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama_folder, tmp_path / "hf")
    end = json.loads((tmp_path / "hf/config.json").read_text())["eos_token_id"]
    change(eos_token_id=[end, 5])(tmp_path / "hf")
    spec = json.loads((tmp_path / "hf/tokenizer.json").read_text())
    first = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [end], "tokens": ["<|endoftext|>"]}
        },
    }
    (tmp_path / "hf/tokenizer.json").write_text(json.dumps(spec))
    found = take_over(
        tmp_path / "hf", tmp_path / "ours", ImportOptions(roles={"eot": "<|endoftext|>"})
    )
    assert [note.split(":")[0] for note in found.notes] == ["eos_token_id", "tokenizer.json"]


def test_a_head_beside_a_tied_embedding_must_be_the_same(
    llama_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama_folder, tmp_path / "hf")
    change(tie_word_embeddings=True)(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not the embedding"):
        take_over(tmp_path / "hf", tmp_path / "ours")


def test_a_chat_template_with_special_tokens_of_its_own_is_left_out_with_a_note(
    llama_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama_folder, tmp_path / "hf")
    tree = {"chat_template": "<|mask|>{{ messages[0].content }}"}
    (tmp_path / "hf/tokenizer_config.json").write_text(json.dumps(tree))
    found = take_over(tmp_path / "hf", tmp_path / "ours")
    assert "special token <|mask|>" in found.notes[0]
    assert not (tmp_path / "ours/chat_template.jinja").exists()


def test_the_longest_sequence_may_be_shorter_than_theirs(
    llama_folder: Path, tmp_path: Path
) -> None:
    take_over(llama_folder, tmp_path / "ours", ImportOptions(max_seq_len=32))
    assert load_weights(tmp_path / "ours").model.max_seq_len == 32
    with pytest.raises(ConfigError, match="has 64 positions"):
        take_over(llama_folder, tmp_path / "other", ImportOptions(max_seq_len=65))
