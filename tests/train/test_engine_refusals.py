"""Options of the engine that can't be honoured are refused before a worker starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from xtdist.config import ConfigError, from_mapping
from xtdist.train import hardware
from xtdist.train.hardware import resolve_engine
from xtdist.train.in_force import Fact, check
from xtdist.train.spec import EngineSpec

NVME = {"kind": "nvme", "path": "/tmp"}
CPU = {"kind": "cpu"}
ALONE: list[tuple[dict[str, Any], str]] = [
    ({"zero_stage": 0, "offload_optimizer": CPU}, "offload_optimizer"),
    ({"zero_stage": 2, "offload_optimizer": CPU, "offload_parameters": CPU}, "offload_parameters"),
    ({"zero_stage": 3, "offload_parameters": CPU}, "offload_parameters"),
    ({"zero_stage": 2, "offload_optimizer": NVME}, "offload_optimizer.kind"),
    ({"zero_stage": 3, "offload_optimizer": NVME | {"path": "here"}}, "path"),
    ({"zero_stage": 3, "offload_optimizer": NVME | {"buffers": 3}}, "offload_optimizer"),
    ({"zero_stage": 0, "overlap_comm": True}, "overlap_comm"),
    ({"zero_stage": 0, "reduce_bucket": 10}, "reduce_bucket"),
    ({"zero_stage": 3, "allgather_bucket": 10}, "allgather_bucket"),
    ({"zero_stage": 2, "prefetch_bucket": 10}, "prefetch_bucket"),
    ({"zero_stage": 2, "persist_below": 10}, "persist_below"),
    ({"zero_stage": 0, "contiguous_gradients": False}, "contiguous_gradients"),
    ({"offload_optimizer": CPU, "contiguous_gradients": False}, "contiguous_gradients"),
    ({"zero_stage": 3, "round_robin_gradients": True}, "round_robin_gradients"),
    ({"zero_stage": 2, "hpz_partition_size": 2}, "hpz_partition_size"),
    ({"zero_stage": 2, "quantized_weights": True}, "quantized_weights"),
    ({"zero_stage": 1, "quantized_gradients": True}, "quantized_gradients"),
    ({"precision": "bf16", "loss_scale": {}}, "loss_scale"),
    ({"compile": {"mode": "reduce-overhead"}}, "compile.mode"),
]
ON_CPU: list[tuple[dict[str, Any], str]] = [
    ({"precision": "fp16"}, "engine.precision"),
    ({"zero_stage": 3, "quantized_weights": True}, "engine.quantized_weights"),
    ({"zero_stage": 3, "quantized_gradients": True}, "engine.quantized_gradients"),
    ({"offload_optimizer": CPU | {"pin_memory": True}}, "engine.offload_optimizer.pin_memory"),
    ({"zero_stage": 1, "precision": "bf16", "overlap_comm": True}, "engine.overlap_comm"),
    ({"zero_stage": 1, "precision": "bf16", "reduce_bucket": 9}, "engine.reduce_bucket"),
]


@pytest.mark.parametrize(("options", "key"), ALONE, ids=str)
def test_an_option_that_its_stage_does_not_have_is_refused(
    options: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        from_mapping(EngineSpec, options)


@pytest.mark.parametrize(("options", "key"), ON_CPU, ids=str)
def test_an_option_that_a_cpu_does_not_have_is_refused(options: dict[str, Any], key: str) -> None:
    engine = from_mapping(EngineSpec, options)
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        resolve_engine(engine, gpu=False)


def test_what_has_to_be_compiled_is_refused_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hardware, "compiler", lambda: None)
    nvme = {"zero_stage": 3, "offload_optimizer": NVME | {"path": str(tmp_path / "swap")}}
    for options, key in (({"compile": {}}, "engine.compile"), (nvme, "offload_optimizer.kind")):
        with pytest.raises(ConfigError, match=rf"{key}.*g\+\+"):
            resolve_engine(from_mapping(EngineSpec, options), gpu=False)


def test_nvme_needs_a_folder_to_write_in_and_the_headers_of_libaio(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")

    def engine(path: Path) -> EngineSpec:
        offload = NVME | {"path": str(path)}
        return from_mapping(EngineSpec, {"zero_stage": 3, "offload_optimizer": offload})

    with pytest.raises(ConfigError, match=r"offload_optimizer\.path: .*file can't be written"):
        resolve_engine(engine(tmp_path / "file"), gpu=False)
    monkeypatch.setattr(hardware, "has_libaio", lambda: False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with pytest.raises(ConfigError, match="install libaio-dev"):
        resolve_engine(engine(tmp_path / "swap"), gpu=False)


def test_what_is_not_as_asked_for_is_named_with_both_values() -> None:
    facts = [Fact("zero stage", 2, 3), Fact("attention", ["sdpa"]), Fact("world", 2, 2)]
    with pytest.raises(RuntimeError) as e:
        check(facts)
    assert "zero stage: asked for 3, in force is 2" in str(e.value)
    assert "world" not in str(e.value)
    check(facts[1:])
