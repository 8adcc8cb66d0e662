"""All that DeepSpeed is told. Every field that matters is written out: its defaults bite
(gradient clipping is on by default, a reduce bucket is 2 GB)."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xtdist.config import ConfigError
from xtdist.train.hardware import uses_nvme
from xtdist.train.optimizer import make_optimizer, settle_optimizer
from xtdist.train.reduction import unfuse
from xtdist.train.spec import RunSpec, Split
from xtdist.train.spec.engine import CpuOffload, EngineSpec, LossScale, Offload

BUCKETS = {"cuda": 200_000_000, "cpu": 2_000_000}
"""Numbers that are sent at once."""
MAX_LIVE = 10**9
"""Parameters that stage 3 holds gathered at once."""


def build_engine(spec: RunSpec, module: nn.Module, *, split: Split, device: torch.device) -> Any:
    """DeepSpeed's engine around ``module``, compiled if the spec wants it; the spec's precision is
    resolved. All ranks call it together."""
    import deepspeed

    optimizer = make_optimizer(spec.optim, module)
    if spec.engine.reduction == "canonical":
        unfuse(optimizer)
    with redirect_stdout(io.StringIO()):  # its bf16 optimizer prints the memory in use
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=engine_config(spec, split=split, gpu=device.type == "cuda"),
        )
    settle_optimizer(engine, optimizer)
    if spec.engine.compile is not None:
        engine.compile(compile_kwargs={"mode": spec.engine.compile.mode})
    return engine


def engine_config(spec: RunSpec, *, split: Split, gpu: bool) -> dict[str, Any]:
    """The DeepSpeed config of a run."""
    engine = spec.engine
    replicated = engine.zero_stage == 0 and engine.precision == "fp32"
    canonical = engine.reduction == "canonical"
    here = replicated or canonical  # clipped in step.py
    return {
        "train_micro_batch_size_per_gpu": split.micro_batch,
        "gradient_accumulation_steps": 1,  # step.py tells the engine when a step ends
        "gradient_clipping": 0.0 if here else float(spec.optim.grad_clip),
        # The canonical sum is on one rank and zero on the others: it must arrive undivided.
        "gradient_allreduce_op": "sum" if canonical else "mean",
        "zero_optimization": _zero(spec, gpu=gpu),
        "zero_allow_untested_optimizer": True,
        # Ours is torch's, whose CPU kernel is there; DeepSpeed's own would be compiled first.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        **_numbers(engine),
        **_aio(engine),
    }


def _zero(spec: RunSpec, *, gpu: bool) -> dict[str, Any]:
    """ZeRO's part: what a stage does not have is at its default, and ignored."""
    engine = spec.engine
    bucket = BUCKETS["cuda" if gpu else "cpu"]
    folder = spec.name
    tree: dict[str, Any] = {
        "stage": engine.zero_stage,
        "reduce_bucket_size": _or(engine.reduce_bucket, bucket),
        "allgather_bucket_size": _or(engine.allgather_bucket, bucket),
        "stage3_prefetch_bucket_size": _or(engine.prefetch_bucket, bucket // 10),
        "stage3_param_persistence_threshold": engine.persist_below,
        "stage3_max_live_parameters": MAX_LIVE,
        "stage3_max_reuse_distance": 10**9,
        "sub_group_size": 10**9,
        "reduce_scatter": True,
        "overlap_comm": _or(engine.overlap_comm, gpu),
        "contiguous_gradients": engine.contiguous_gradients,
        "round_robin_gradients": engine.round_robin_gradients,
        "zero_hpz_partition_size": engine.hpz_partition_size,
        "zero_quantized_weights": engine.quantized_weights,
        "zero_quantized_gradients": engine.quantized_gradients,
    }
    if engine.offload_optimizer is not None:
        tree["offload_optimizer"] = _offload(engine.offload_optimizer, folder, gpu=gpu)
    if engine.offload_parameters is not None:
        tree["offload_param"] = _offload(engine.offload_parameters, folder, gpu=gpu)
    return tree


def _offload(offload: Offload, folder: str, *, gpu: bool) -> dict[str, Any]:
    if isinstance(offload, CpuOffload):
        return {"device": "cpu", "pin_memory": _or(offload.pin_memory, gpu)}
    return {
        "device": "nvme",
        "nvme_path": str(Path(offload.path) / folder),  # runs don't write over each other
        "pin_memory": True,
        "buffer_count": offload.buffers,
        "pipeline_read": offload.overlap,
        "pipeline_write": offload.overlap,
    }


def _numbers(engine: EngineSpec) -> dict[str, Any]:
    """What is computed in which precision."""
    if engine.precision == "bf16":
        tree: dict[str, Any] = {"bf16": {"enabled": True}}
        if engine.zero_stage:  # stage 0 can only accumulate in bf16
            tree["data_types"] = {"grad_accum_dtype": "fp32"}
        return tree
    if engine.precision == "fp16":
        scale = engine.loss_scale or LossScale()
        return {
            "fp16": {
                "enabled": True,
                "loss_scale": 0,  # dynamic
                "initial_scale_power": scale.initial_power,
                "loss_scale_window": scale.window,
                "hysteresis": scale.hysteresis,
                "min_loss_scale": scale.least,
            }
        }
    return {}


def _aio(engine: EngineSpec) -> dict[str, Any]:
    if not uses_nvme(engine):
        return {}
    return {
        "aio": {
            "block_size": 2**20,
            "queue_depth": 8,
            "intra_op_parallelism": 1,
            "single_submit": False,
            "overlap_events": True,
        }
    }


def _or(given: Any, auto: Any) -> Any:
    return auto if given == "auto" else given


def device_of(*, gpu: bool, precision: str) -> torch.device:
    """This worker's device.

    Raises:
        ConfigError: its GPU has no bf16.
    """
    if not gpu:
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise ConfigError(
            f"engine.precision: bf16, which {torch.cuda.get_device_name()} does not have; set "
            "engine.precision to fp16 or fp32"
        )
    return torch.device("cuda", torch.cuda.current_device())


def prepare_process(*, gpu: bool) -> None:
    """Settings of a worker process; call before DeepSpeed starts.

    Nothing of ours is a pickle, and torch is told to load none that holds more than tensors;
    no C++ helper is compiled on CPU (it serves inference only).
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    load_deepspeed(gpu=gpu)
    import deepspeed

    deepspeed.utils.logger.setLevel("ERROR")
    warnings.filterwarnings("ignore", module=r"(torch|deepspeed)\.")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo")


def load_deepspeed(*, gpu: bool) -> None:
    """Import it, without what no worker needs."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
    with _without_mlflow():
        import deepspeed.ops  # noqa: F401
    _load_muon_uncompiled()


@contextmanager
def _without_mlflow() -> Iterator[None]:
    """DeepSpeed's tuner, which nobody here runs, imports all of MLflow where it is installed: as
    long as the rest of a worker's start that is not torch's."""
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # its import fails
    try:
        yield
    finally:
        del sys.modules["mlflow"]


def _load_muon_uncompiled() -> None:
    """Every ZeRO stage asks whether the optimizer is DeepSpeed's Muon (ours is another), whose
    module sets up torch's compiler: 1.7 s of CPU of a worker's start."""
    from deepspeed.runtime import compiler

    def as_it_is() -> Callable[[Any], Any]:
        return lambda function: function

    theirs, compiler.compile = compiler.compile, as_it_is
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = theirs
