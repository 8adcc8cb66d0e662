"""All that DeepSpeed is told. Every field that matters is written out: its defaults bite
(gradient clipping is on by default, a reduce bucket is 2 GB)."""

from __future__ import annotations

import os
import warnings
from typing import Any, Literal

import torch

from xtdist.config import ConfigError
from xtdist.train.spec import Precision, RunSpec, Split


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


def engine_config(spec: RunSpec, *, split: Split, precision: str, gpu: bool) -> dict[str, Any]:
    """The DeepSpeed config of a run."""
    stage = spec.engine.zero_stage
    replicated = stage == 0 and precision == "fp32"  # clipped in step.py
    bucket = 200_000_000 if gpu else 2_000_000
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": split.micro_batch,
        "gradient_accumulation_steps": split.accumulation,
        "gradient_clipping": 0.0 if replicated else float(spec.optim.grad_clip),
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket // 10,
            "overlap_comm": gpu,
            "contiguous_gradients": True,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
        if stage:  # stage 0 can only accumulate in bf16
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    elif precision == "fp16":
        config["fp16"] = {"enabled": True, "initial_scale_power": 16}
    return config


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

    Checkpoint pickles are read with torch's restricted unpickler, which knows only the names that
    DeepSpeed's own files need; and no C++ helper is compiled on CPU (it serves inference only).
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals(
        [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]
    )
    deepspeed.utils.logger.setLevel("ERROR")
    warnings.filterwarnings("ignore", module=r"(torch|deepspeed)\.")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo")
