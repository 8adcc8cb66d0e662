"""A run whose model is a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from xtdist.config import ConfigError, load, to_mapping
from xtdist.launch.preflight import preflight, resolve
from xtdist.model.presets import PRESETS, preset
from xtdist.train import RunSpec


@pytest.fixture
def yaml_file(dataset: Path, tmp_path: Path) -> Path:
    tree: dict[str, Any] = {
        "name": "named",
        "output": str(tmp_path / "runs"),
        "data": {"path": str(dataset), "seq_len": 16},
        "model": {"preset": "llama-tiny", "attention": {"window": 8}},
        "optim": {"schedule": {"kind": "constant", "warmup_steps": 1}},
        "batch": {"tokens_per_step": 64},
        "loop": {"steps": 2},
        "engine": {"precision": "fp32"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_run_is_planned_with_the_whole_model_that_a_preset_names(yaml_file: Path) -> None:
    spec = load(RunSpec, yaml_file, ["model.depth=2"]).config
    plan = preflight(resolve(spec), cluster_gpus=0)
    want = preset("llama-tiny", depth=2, attention={"window": 8}, num_tokens=259, max_seq_len=16)
    assert plan.spec.model == want
    written = yaml.safe_load(yaml.safe_dump(to_mapping(plan.spec)))
    assert "preset" not in written["model"]
    (yaml_file.parent / "resolved.yaml").write_text(yaml.safe_dump(written))
    assert load(RunSpec, yaml_file.parent / "resolved.yaml").config == plan.spec


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_named_in_an_override(yaml_file: Path, name: str) -> None:
    assert load(RunSpec, yaml_file, [f"model.preset={name}"]).config.model == preset(name)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.preset=llama-tinny", ["did you mean 'llama-tiny'", "override"]),
        ("model.preset=[1]", ["model.preset: got [1]; give a name: llama-tiny"]),
        ("model.attention.kv_heads=3", ["kv_heads: got 3 with heads=2"]),
        ("model.deph=3", ["did you mean 'depth'"]),
        ("data.preset=x", ["unknown key 'preset'"]),
    ],
)
def test_a_mistake_beside_a_preset_is_refused(
    yaml_file: Path, override: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(RunSpec, yaml_file, [override])
    assert all(word in str(caught.value) for word in words), caught.value
