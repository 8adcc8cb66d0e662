"""What `export --check` names: on a config before training, and on weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hf_folders import QWEN3, write_weights

from xtdist.checkpoint.huggingface.check import ONLY_TRAINING, OTHER_FORM, blocking, family_of
from xtdist.checkpoint.huggingface.families import FAMILIES
from xtdist.cli.main import main
from xtdist.config import to_mapping
from xtdist.model.config import ModelConfig
from xtdist.model.options.resolver import resolve
from xtdist.model.options.table import OPTIONS
from xtdist.model.presets import PRESETS, preset

RUN = """
name: x
data: {path: nowhere, seq_len: 32}
model: {preset: llama-tiny, attention: {softclamp: 30.0, window: 8}}
loop: {steps: 1}
"""


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_exported(name: str) -> None:
    config = preset(name)
    kind = family_of(config)
    assert kind.name == name.partition("-")[0]
    assert blocking(config, kind) == ()


@pytest.mark.parametrize(
    ("changes", "family", "places"),
    [
        ({"norm": {"kind": "layernorm"}}, "llama", ["norm.kind"]),
        ({"causal": False}, "llama", ["causal"]),
        ({"position": {"kind": "learned"}}, "llama", ["position.kind"]),
        ({"position": {"dim": 32}}, "llama", ["position.dim"]),
        ({"feedforward": {"kind": "moe", "top_k": 1}}, "mixtral", ["feedforward.top_k"]),
        (
            {"feedforward": {"kind": "moe", "shared_experts": 1}},
            "mixtral",
            ["feedforward.shared_experts"],
        ),
        ({"attention": {"qk_rmsnorm": True}}, "qwen3", ["attention.shared_norm_gain", "norm.eps"]),
        ({"attention": QWEN3}, "qwen3", ["norm.eps"]),
        ({"attention": {"value_dim_head": 8}}, "llama", ["attention.value_dim_head"]),
        (
            {"order": {"macaron": True}, "final_norm": False},
            "llama",
            ["final_norm", "order.macaron"],
        ),
        ({"feedforward": {"activation": "solu"}}, "llama", ["feedforward.activation"]),
        ({"embedding": {"norm": True}}, "llama", ["embedding.norm"]),
    ],
)
def test_all_that_prevents_it_is_named_by_its_place(
    changes: dict[str, Any], family: str, places: list[str]
) -> None:
    config = preset("llama-tiny", **changes)
    assert family_of(config).name == family
    assert [p.place for p in blocking(config, FAMILIES[family])] == places


def test_no_option_of_the_model_is_lost_silently() -> None:
    """Whatever samples an option has, it prevents the export, or the family has a word for it, or
    it acts in training alone."""
    said = {
        *("sliding window", "grouped queries", "rotary scaling", "rotary interpolation"),
        *("rotary base rescaling", "attention biases", "attention output bias", "tied embedding"),
        *("rotary layout of halves", "squared ReLU", "swish", "no feed-forward bias", "layers"),
        *("embedding", "feed-forward", "glu", "attention", "rotary positions", "causal", "flash"),
        *("muP", "mixture of experts", "tanh GELU", "pre-norm", "rmsnorm", "layernorm", "residual"),
    }
    base = preset("llama-tiny", num_tokens=99, max_seq_len=16)
    checked = 0
    for option in OPTIONS:
        for sample in option.samples:
            tree = to_mapping(base)
            if not sample.config or not _apply(tree, sample.config):
                continue
            config = _made(tree)
            if config is None or option.name in said:
                continue
            checked += 1
            harmless = all(
                any(place.startswith(p) for p in (*ONLY_TRAINING, *OTHER_FORM))
                for place in _places(sample.config)
            )
            assert harmless or blocking(config, family_of(config)), option.name
    assert checked >= 5


def _apply(tree: dict[str, Any], changes: Any) -> bool:
    for key, value in changes.items():
        part, _, rest = key.partition(".")
        if rest:
            if not isinstance(tree.get(part), dict):
                return False
            _apply(tree[part], {rest: value})
        elif isinstance(value, dict) and isinstance(tree.get(part), dict) and "kind" not in value:
            _apply(tree[part], value)
        else:
            tree[part] = value
    return True


def _places(changes: Any, path: str = "") -> list[str]:
    found = []
    for key, value in changes.items():
        found += _places(value, f"{path}{key}.") if isinstance(value, dict) else [f"{path}{key}"]
    return found


def _made(tree: dict[str, Any]) -> ModelConfig | None:
    from xtdist.config import ConfigError, from_mapping

    try:
        config = from_mapping(ModelConfig, tree)
        resolve(config)
    except ConfigError:
        return None
    return config


def test_a_config_is_checked_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(RUN)
    assert main(["export", "--check", str(file)]) == 1
    out = capsys.readouterr().out
    assert "not exactly a MistralForCausalLM" in out
    assert "model.attention.softclamp: got 30.0, must be null" in out
    assert main(["export", "--check", str(file), "model.attention.softclamp=null"]) == 0
    assert "exactly a MistralForCausalLM" in capsys.readouterr().out
    assert main(["export", "--check", "--format", "llama", str(file)]) == 1
    assert "model.attention.window: got 8, must be null" in capsys.readouterr().out


def test_weights_are_checked_and_exported_and_imported_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(write_weights(tmp_path / "ours"))
    assert main(["export", weights, "--check"]) == 0
    assert main(["export", weights, "--output", str(tmp_path / "hf"), "--dtype", "float16"]) == 0
    assert main(["import", str(tmp_path / "hf"), "--output", str(tmp_path / "back")]) == 0
    assert main(["export", str(tmp_path / "back"), "--check"]) == 0
    capsys.readouterr()
    for words in (
        ["export", weights],
        ["export", weights, "--check", "--output", "x"],
        ["export", "run.yaml", "--output", "x"],
        ["export", weights, "--output", str(tmp_path / "new"), "model.depth=3"],
        ["import", weights, "--output", str(tmp_path / "new")],
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_every_place_that_is_left_out_of_the_comparison_exists() -> None:
    known = set()
    for base in (preset("llama-tiny"), preset("llama-tiny", feedforward={"kind": "moe"})):
        known |= set(_places(to_mapping(base)))
        known |= {f.name for f in dataclasses.fields(ModelConfig)}
    assert {*ONLY_TRAINING, *OTHER_FORM} <= known
