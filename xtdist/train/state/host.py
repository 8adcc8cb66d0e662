"""Host memory that one save after another is copied into.

Fresh memory costs the step path several times the copy itself: the kernel hands it out page by
page, zeroed. On CUDA it is pinned, so that the copies need no detour.
"""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopies:
    """The caller sees to it that nobody reads the copies of a key any more when it copies again."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def copy(self, key: str, tensor: Tensor) -> Tensor:
        """``tensor`` in host memory, in that of the last copy of ``key`` if it has room for it; it
        may not be complete before :meth:`wait`."""
        kept = self._kept.get(key)
        if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._kept[key] = kept
        return kept.copy_(tensor.detach(), non_blocking=True)

    def wait(self) -> None:
        """Until all copies are complete."""
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
