"""The DeepSpeed engine of a run. What can't be honoured is refused: here where the options alone
say so, in xtdist/train/hardware.py where it depends on the machine."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from xtdist.config import ConfigError, NonNegativeInt, PositiveFloat, PositiveInt, configclass

Precision = Literal["fp32", "bf16", "fp16"]
Switch = Literal["auto"] | bool


@configclass
class CpuOffload:
    """To the host's memory. ``pin_memory``: page-locked, for fast copies from and to a GPU."""

    kind: Literal["cpu"] = "cpu"
    pin_memory: Switch = "auto"


@configclass
class NvmeOffload:
    """To files below ``path``, a folder on a fast local disk of every machine (2104.07857).
    ``buffers``: pinned buffers, of which AdamW needs four. ``overlap``: one piece is read and
    another written while a third is updated."""

    kind: Literal["nvme"] = "nvme"
    path: str
    buffers: Annotated[int, Field(ge=4, le=64)] = 4
    overlap: bool = False

    def __post_init__(self) -> None:
        if not self.path.startswith("/"):
            raise ConfigError(
                f"path: got {self.path!r}; give an absolute path: workers run in another folder"
            )


Offload: TypeAlias = Annotated[CpuOffload | NvmeOffload, Field(discriminator="kind")]


@configclass
class CompileConfig:
    """``torch.compile`` of the forward pass with its loss. ``mode`` is torch's, as far as it can do
    without CUDA graphs, which keep the memory of one forward pass for the next."""

    mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"


@configclass
class LossScale:
    """Of fp16: the loss is scaled by 2**``initial_power``, halved after ``hysteresis`` overflows
    (down to ``least``), doubled after ``window`` steps without one (1710.03740)."""

    initial_power: Annotated[int, Field(ge=0, le=32)] = 16
    window: PositiveInt = 1000
    hysteresis: PositiveInt = 2
    least: PositiveFloat = 1.0


@configclass
class EngineSpec:
    """The DeepSpeed engine. Stage 0 replicates everything, 1 shards the optimizer, 2 also the
    gradients, 3 also the parameters (1910.02054). ``auto`` precision is bf16 where the hardware
    multiplies it (a GPU since Ampere, a CPU with AMX), else fp32.

    offload_optimizer: where optimizer state and fp32 weights lie; the update runs on the CPU.
    offload_parameters: where stage 3 keeps the weights.
    overlap_comm: gradients are reduced during the backward pass; auto = on GPUs.
    reduce_bucket, allgather_bucket: numbers sent at once; auto = 2e8 on a GPU, 2e6 on a CPU.
    prefetch_bucket: numbers that stage 3 fetches ahead; auto = a tenth of that.
    persist_below: stage 3 keeps parameters with fewer numbers whole.
    contiguous_gradients: gradients are copied into one buffer as they come.
    round_robin_gradients: stages 1 and 2 cut gradients finer, for offloading by many ranks.
    reduction: fast sums gradients as the engine does; canonical in an order that does not depend on
        the number of workers, so that losses and weights are the same to the bit with any (on
        machines of one kind): slow, to verify. Its micro-batches are the same with any number.
    hpz_partition_size: ranks that hold a second copy of the weights among them, usually those of
        one machine (ZeRO++, 2306.10209); 1 = off. quantized_weights, quantized_gradients: sent as
        int8 and int4, which changes the numbers.
    sequence_parallel: so many neighbouring ranks share the same sequences, of which each computes a
        slice; within attention each has whole sequences and some of the heads (Ulysses,
        2309.14509). For sequences too long for one device; losses are those without it.
    """

    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["auto"] | Precision = "auto"
    loss_scale: LossScale | None = None
    offload_optimizer: Offload | None = None
    offload_parameters: Offload | None = None
    overlap_comm: Switch = "auto"
    reduce_bucket: Literal["auto"] | PositiveInt = "auto"
    allgather_bucket: Literal["auto"] | PositiveInt = "auto"
    prefetch_bucket: Literal["auto"] | PositiveInt = "auto"
    persist_below: NonNegativeInt = 100_000
    contiguous_gradients: bool = True
    round_robin_gradients: bool = False
    reduction: Literal["fast", "canonical"] = "fast"
    hpz_partition_size: PositiveInt = 1
    quantized_weights: bool = False
    quantized_gradients: bool = False
    compile: CompileConfig | None = None
    sequence_parallel: PositiveInt = 1

    def __post_init__(self) -> None:
        self._check_stage()
        self._check_offload()
        self._check_canonical()
        if self.loss_scale is not None and self.precision != "fp16":
            raise ConfigError(
                f"loss_scale: only fp16 scales its loss, and precision is {self.precision!r}; "
                "leave it out, or set precision=fp16"
            )

    def _check_stage(self) -> None:
        """An option is given only to a stage that has it."""
        of_stages: dict[str, tuple[int, ...]] = {
            "offload_optimizer": (1, 2, 3),
            "offload_parameters": (3,),
            "overlap_comm": (1, 2, 3),
            "reduce_bucket": (1, 2, 3),
            "allgather_bucket": (1, 2),
            "prefetch_bucket": (3,),
            "persist_below": (3,),
            "contiguous_gradients": (1, 2, 3),
            "round_robin_gradients": (1, 2),
            "reduction": (0, 1, 2),
            "hpz_partition_size": (3,),
            "quantized_weights": (3,),
            "quantized_gradients": (3,),
        }
        default = type(self).__dataclass_fields__
        for name, stages in of_stages.items():
            value = getattr(self, name)
            if value != default[name].default and self.zero_stage not in stages:
                raise ConfigError(
                    f"{name}: got {value!r}, which zero_stage {self.zero_stage} does not have; "
                    f"leave it out, or set zero_stage to {' or '.join(map(str, stages))}"
                )

    def _check_canonical(self) -> None:
        if self.reduction != "canonical":
            return
        beside = {
            "precision=fp16": self.precision == "fp16",
            "offload_optimizer": self.offload_optimizer is not None,
            "compile": self.compile is not None,
        }
        for name, there in beside.items():
            if there:
                raise ConfigError(
                    f"reduction: got 'canonical' with {name}, whose numbers may depend on the "
                    "number of workers; leave one of them out"
                )

    def _check_offload(self) -> None:
        optimizer, parameters = self.offload_optimizer, self.offload_parameters
        if isinstance(optimizer, NvmeOffload) and self.zero_stage != 3:
            raise ConfigError(
                f"offload_optimizer.kind: got 'nvme' at zero_stage {self.zero_stage}; only stage 3 "
                "has it: set zero_stage=3, or kind=cpu"
            )
        if parameters is not None and optimizer is None:
            raise ConfigError(
                "offload_parameters: without offload_optimizer the update would run on the CPU all "
                "the same; give offload_optimizer too"
            )
        if optimizer is not None and not self.contiguous_gradients:
            raise ConfigError(
                "contiguous_gradients: got false, but offload_optimizer needs the one buffer: "
                "leave one of them out"
            )
