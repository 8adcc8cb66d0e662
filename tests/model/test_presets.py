"""Named model sizes: counted by formula, and built."""

from __future__ import annotations

import pytest
import torch

from xtdist.config import ConfigError, to_mapping
from xtdist.model import ModelConfig, TransformerWrapper
from xtdist.model.presets import PRESETS, Preset, expand, preset
from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.feedforward import GLUConfig, MLPConfig
from xtdist.nn.position.config import NoPositionConfig

every = pytest.mark.parametrize("name", PRESETS)


def customary(name: str) -> ModelConfig:
    given: Preset = PRESETS[name]
    return preset(name, num_tokens=given.num_tokens, max_seq_len=given.max_seq_len)


def counted(c: ModelConfig, *, gated: bool) -> int:
    """Parameters as one would count them with a pencil."""
    d, heads, head = c.dim, c.heads, c.attention.dim_head
    attention = 2 * d * heads * head + 2 * d * (c.attention.kv_heads or heads) * head
    inner = round(d * c.feedforward.mult)
    if gated:
        inner = (inner + 63) // 64 * 64
        block = attention + 3 * d * inner + 2 * d
    else:
        block = attention + 2 * d * inner + inner + d + 2 * d
    tables = c.num_tokens * d * (1 if c.tie_embedding else 2)
    tables += 0 if gated else c.max_seq_len * d
    return c.depth * block + d + tables


@every
def test_a_preset_has_the_size_that_its_name_says(name: str) -> None:
    config = customary(name)
    with torch.device("meta"):
        model = TransformerWrapper.from_config(config)
    built = sum(p.numel() for p in model.parameters())
    assert built == counted(config, gated=name.startswith("llama"))
    assert abs(built / PRESETS[name].parameters - 1) < 0.1
    label = name.split("-")[1]
    if label != "tiny":
        unit = {"m": 1e6, "b": 1e9}[label[-1]]
        assert PRESETS[name].parameters == float(label[:-1]) * unit


@pytest.mark.parametrize("name", ["llama-tiny", "gpt2-tiny"])
def test_the_smallest_presets_run(name: str) -> None:
    model = TransformerWrapper.from_config(customary(name))
    assert model(torch.zeros(1, 8, dtype=torch.long)).shape == (1, 8, 259)


def test_large_models_share_keys_and_small_ones_tie_their_embedding() -> None:
    assert preset("llama-7b").attention.kv_heads == 8
    assert not preset("llama-7b").tie_embedding
    assert preset("llama-125m").tie_embedding
    assert all(preset(name).tie_embedding for name in PRESETS if name.startswith("gpt2"))


def test_changes_reach_single_fields_and_whole_parts() -> None:
    changed = preset("llama-1b", depth=3, attention={"dropout": 0.1}, position={"kind": "learned"})
    assert (changed.depth, changed.dim) == (3, 2048)
    assert changed.attention == AttentionConfig(dim_head=64, kv_heads=8, dropout=0.1)
    assert changed.position.kind == "learned"
    assert preset("llama-1b", position=NoPositionConfig()).position.kind == "none"
    assert preset("llama-1b").depth == 20


def test_only_another_kind_resets_a_part() -> None:
    same = preset("llama-1b", feedforward={"kind": "glu", "activation": "gelu"}).feedforward
    assert same == GLUConfig(activation="gelu", mult=2.75)
    other = preset("llama-1b", feedforward={"kind": "mlp", "activation": "relu"}).feedforward
    assert other == MLPConfig(activation="relu")


def test_a_mapping_with_a_preset_is_expanded_under_what_else_it_says() -> None:
    tree = expand({"preset": "gpt2-125m", "depth": 24, "attention": {"dropout": 0.1}})
    assert tree == to_mapping(preset("gpt2-125m", depth=24, attention={"dropout": 0.1}))
    assert expand({"dim": 8, "depth": 1}) == {"dim": 8, "depth": 1}
    with pytest.raises(ConfigError, match="llama-125m"):
        expand({"preset": 125})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama-125M", {}, "did you mean 'llama-125m'"),
        ("lama-1b", {}, "did you mean 'llama-1b'"),
        ("zzz", {}, "known: llama-tiny, .*gpt2-7b"),
        ("tiny", {}, "did you mean 'llama-tiny' or 'gpt2-tiny'"),
        ("llama-1b", {"preset": "gpt2-1b"}, "got 'llama-1b' and preset='gpt2-1b'; name one"),
        ("llama-1b", {"deptth": 2}, "did you mean 'depth'"),
        ("llama-1b", {"depth": 0}, "depth: got 0"),
        ("llama-1b", {"attention": {"kv_heads": 5}}, "kv_heads: got 5"),
    ],
)
def test_an_unknown_preset_or_change_is_an_error_that_says_the_fix(
    name: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        preset(name, **changes)
