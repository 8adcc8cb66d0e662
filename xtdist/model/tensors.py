"""Checks of single tensors: what was given, what is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

INDEX_TYPES = (torch.int64, torch.int32)


def seen(value: Any) -> str:
    """What was given, in a few words."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def check_tensor(value: Any, *, name: str) -> Tensor:
    """``value``, a tensor.

    Raises:
        ValueError: something else.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: got {seen(value)}; give a torch.Tensor (torch.as_tensor)")
    return value


def is_integer(value: Tensor) -> bool:
    """Whether it holds whole numbers; True and False are none."""
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def check_shape(
    value: Any, *, name: str, kind: str, shapes: Sequence[tuple[int, ...]], what: str = ""
) -> Tensor:
    """A tensor of ``kind`` bool, integer or float, in one of ``shapes``; ``what`` explains them.

    Raises:
        ValueError: another type or shape.
    """
    value = check_tensor(value, name=name)
    right = {
        "bool": value.dtype == torch.bool,
        "integer": is_integer(value),
        "float": value.is_floating_point(),
    }[kind]
    if not right or not any(tuple(value.shape) == shape for shape in shapes):
        allowed = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise ValueError(f"{name}: got {seen(value)}; give {kind} {allowed}{what}")
    return value


def check_type(value: Any, module: nn.Module, *, name: str) -> Tensor:
    """A tensor of the floating point type of ``module``'s weights; with autocast any that it casts.

    Raises:
        ValueError: another type.
    """
    value = check_tensor(value, name=name)
    # sharded weights (of a type of their own) may be cast when they are gathered: they say nothing
    weights = (w for w in module.parameters() if type(w) is nn.Parameter and w.is_floating_point())
    wanted = next((w.dtype for w in weights), value.dtype)
    cast = torch.is_autocast_enabled(value.device.type) and torch.float64 not in (
        value.dtype,
        wanted,
    )
    if not value.is_floating_point() or (value.dtype != wanted and not cast):
        raise ValueError(
            f"{name}: got {seen(value)}; give {wanted}, the type of the weights: "
            f"{name}.to({wanted})"
        )
    return value


def check_ids(ids: Tensor, count: int, *, name: str, what: str) -> Tensor:
    """Integer ``ids`` below ``count``, in a type that can index.

    On a GPU the range is checked without waiting for the result; the error then comes from the
    device. A compiled graph does not look.

    Raises:
        ValueError: another type, or a number out of range.
    """
    ids = check_tensor(ids, name=name)
    if not is_integer(ids):
        raise ValueError(f"{name}: got {seen(ids)}; give {what} (integers)")
    ids = ids if ids.dtype in INDEX_TYPES else ids.long()
    if not ids.numel() or torch.compiler.is_compiling():
        return ids
    if ids.device.type == "cpu":
        low, high = (int(end) for end in torch.aminmax(ids))
        if low < 0 or high >= count:
            wrong = low if low < 0 else high
            raise ValueError(f"{name}: got {wrong}; give {what} from 0 to {count - 1}")
    elif ids.device.type == "cuda":
        inside = ((ids >= 0) & (ids < count)).all()
        torch._assert_async(inside, f"{name}: {what} out of range 0 to {count - 1}")
    return ids
