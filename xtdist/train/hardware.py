"""What an engine needs of the machine. The driver asks before a worker starts, and each worker
again for its own machine."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import torch

from xtdist.config import ConfigError
from xtdist.train.spec.engine import CpuOffload, EngineSpec, NvmeOffload, Precision

AIO = "#include <libaio.h>\nint main() { return io_setup(0, 0); }\n"


def resolve_engine(engine: EngineSpec, *, gpu: bool) -> EngineSpec:
    """``engine`` with its precision chosen, all of which this machine can do.

    Raises:
        ConfigError: naming what it can't.
    """
    precision = resolve_precision(engine.precision, gpu=gpu)
    engine = dataclasses.replace(engine, precision=precision)
    _check_device(engine, gpu=gpu)
    _check_optimizer(engine)
    if engine.compile is not None and not gpu and compiler() is None:
        raise ConfigError("engine.compile: no C++ compiler was found; install g++, or leave it out")
    for name in ("offload_optimizer", "offload_parameters"):
        offload = getattr(engine, name)
        if isinstance(offload, NvmeOffload):
            _check_nvme(offload, f"engine.{name}")
    return engine


def resolve_precision(wanted: Literal["auto"] | Precision, *, gpu: bool) -> Precision:
    """``auto`` becomes bf16 on a GPU and on a CPU with AMX, else fp32. The driver decides, so that
    workers on different machines agree.

    Raises:
        ConfigError: the wanted precision does not exist on this device.
    """
    if wanted == "auto":
        return "bf16" if gpu or cpu_has_amx() else "fp32"
    if wanted == "fp16" and not gpu:
        raise ConfigError("engine.precision: got 'fp16'; a CPU has bf16 and fp32 only")
    return wanted


def cpu_has_amx() -> bool:
    """Whether this CPU has bf16 matrix tiles (several times the fp32 rate)."""
    return bool(torch.cpu._is_amx_tile_supported()) if hasattr(torch, "cpu") else False


def uses_nvme(engine: EngineSpec) -> bool:
    """Whether anything is offloaded to files."""
    return any(
        isinstance(offload, NvmeOffload)
        for offload in (engine.offload_optimizer, engine.offload_parameters)
    )


def _check_device(engine: EngineSpec, *, gpu: bool) -> None:
    if gpu:
        return
    for name in ("quantized_weights", "quantized_gradients"):
        if getattr(engine, name):
            raise ConfigError(f"engine.{name}: only GPUs have it; leave it out")
    for name in ("offload_optimizer", "offload_parameters"):
        offload = getattr(engine, name)
        if isinstance(offload, CpuOffload) and offload.pin_memory is True:
            raise ConfigError(
                f"engine.{name}.pin_memory: got true, but without a GPU nothing is pinned; leave "
                "it out"
            )


def _check_optimizer(engine: EngineSpec) -> None:
    """DeepSpeed has an optimizer of its own for bf16 at stage 1, which knows less."""
    if (engine.zero_stage, engine.precision) != (1, "bf16") or engine.offload_optimizer is not None:
        return
    default = EngineSpec()
    for name in (
        "overlap_comm",
        "reduce_bucket",
        "contiguous_gradients",
        "round_robin_gradients",
    ):
        if getattr(engine, name) != getattr(default, name):
            raise ConfigError(
                f"engine.{name}: got {getattr(engine, name)!r}, which stage 1 in bf16 does not "
                "have; leave it out, or set engine.zero_stage=2"
            )


def _check_nvme(offload: NvmeOffload, key: str) -> None:
    """Raises ConfigError unless the folder can be written and DeepSpeed's operator be built."""
    folder = Path(offload.path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise ConfigError(f"{key}.path: {folder} can't be written; give another folder")
    from torch.utils.cpp_extension import is_ninja_available

    if compiler() is None or not is_ninja_available():
        lacks = "install g++ and ninja"
    elif not has_libaio():
        lacks = "install libaio-dev (libaio-devel)"
    else:
        return
    raise ConfigError(
        f"{key}.kind: got 'nvme', for which DeepSpeed compiles an operator, and something that it "
        f"needs is not here: {lacks}, or set kind=cpu"
    )


def compiler() -> str | None:
    """torch's C++ compiler, if there is one."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return str(get_cpp_compiler())
    except InvalidCxxCompiler:
        return None


def has_libaio() -> bool:
    """Whether programs that use libaio can be built here."""
    found = compiler()
    if found is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = [found, "-x", "c++", "-", "-laio", "-o", str(Path(folder) / "out")]
        return subprocess.run(command, input=AIO.encode(), capture_output=True).returncode == 0
