"""What a worker's device offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import psutil  # type: ignore[import-untyped]

from xtdist.config import ConfigError
from xtdist.config.fields import nearest
from xtdist.train.meters.flops import peak_tflops
from xtdist.train.spec.engine import Precision

GIB = 2**30
# Makers' names and memories in GB as they are sold (of 2**30 bytes, as CUDA tells them).
MEMORY_GIB = {
    "a10": 24,
    "a100-40": 40,
    "a100-80": 80,
    "b200": 180,
    "h100": 80,
    "h100-nvl": 94,
    "h100-pcie": 80,
    "h200": 141,
    "l4": 24,
    "l40s": 48,
    "mi300x": 192,
    "rtx-4090": 24,
    "t4": 16,
    "v100-32": 32,
}
NO_BF16 = ("t4", "v100-32")
RESERVED = 0.06
"""Of a GPU: CUDA's context, NCCL's buffers, what the allocator can't use."""


@dataclass(frozen=True)
class Device:
    """``bytes``: what one worker may use. ``tflops``: dense peak at the run's precision, None if it
    is not known. ``cuda``: a GPU."""

    name: str
    bytes: int
    tflops: float | None = None
    cuda: bool = True


def known_device(
    name: str,
    *,
    precision: Literal["auto"] | Precision = "auto",
    memory_gib: float | None = None,
    tflops: float | None = None,
) -> Device:
    """A GPU by its name, or ``cpu``: this machine's memory.

    Args:
        precision: of the run. The table's peaks are those of 16 bits; fp32 has none there.

    Raises:
        ConfigError: a name that is not in the table, without a memory; or it lacks the precision.
    """
    key = name.lower().replace(" ", "-")
    if key == "cpu":
        whole = memory_gib * GIB if memory_gib else psutil.virtual_memory().total
        return Device("cpu", int(whole), tflops, cuda=False)
    if memory_gib is None and key not in MEMORY_GIB:
        near = nearest(key, MEMORY_GIB)
        raise ConfigError(
            f"--gpu: got {name!r}; {f'did you mean {near!r}? ' if near else ''}known are "
            f"{', '.join(MEMORY_GIB)} and cpu; of another one give --memory-gb and --peak-tflops"
        )
    if precision in ("auto", "bf16") and key in NO_BF16:
        raise ConfigError(
            f"engine.precision: got {precision!r}, and {key} has no bf16; give fp16 or fp32"
        )
    whole = (memory_gib or MEMORY_GIB[key]) * GIB
    return Device(key, int(whole * (1 - RESERVED)), tflops or peak_at(precision, key))


def peak_at(precision: Literal["auto"] | Precision, name: str) -> float | None:
    """Of a GPU of this name, by the table."""
    return None if precision == "fp32" else peak_tflops(name)
