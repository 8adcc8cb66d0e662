"""Bytes of all tensors that are alive, as an allocator would count them."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make while it is entered, real or fake, and when they
    are gone.

    Attributes:
        now: bytes of those that are alive.
        peak: the most since the last ``reset``.
    """

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes = dict[int, int]()
        for tensor in known:
            self._see(tensor)

    def reset(self) -> None:
        """Forget the peak."""
        self.peak = self.now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._see(value)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        before = self._sizes.get(key)
        if before is None:
            weakref.finalize(storage, self._gone, key)
        if size != before:
            self._sizes[key] = size
            self.now += size - (before or 0)
            self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)
