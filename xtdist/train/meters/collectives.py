"""Seeing the waits inside DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from xtdist.train.meters.phases import Phases

COLLECTIVES = (
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)


@contextmanager
def timed_collectives(phases: Phases) -> Iterator[None]:
    """What this process waits in DeepSpeed's collectives is counted as ``reduce``.

    For CPU runs: gloo's calls, or the waits for their handles, are where the time goes. On CUDA
    they only queue work, and what of it is not hidden behind the backward pass can't be told apart
    without stopping the device; it stays part of ``backward`` there.
    """
    from deepspeed.comm import comm

    backend = comm.cdb
    names = [name for name in COLLECTIVES if hasattr(backend, name)]
    for name in names:
        setattr(backend, name, _timed(getattr(backend, name), phases))
    try:
        yield
    finally:
        for name in names:
            delattr(backend, name)  # the class's own is seen again


def _timed(function: Callable[..., Any], phases: Phases) -> Callable[..., Any]:
    def call(*args: Any, **keywords: Any) -> Any:
        with phases("reduce"):
            handle = function(*args, **keywords)
        return _Handle(handle, phases) if hasattr(handle, "wait") else handle

    return call


class _Handle:
    """A running collective; waiting for it is counted too."""

    def __init__(self, work: Any, phases: Phases) -> None:
        self._work, self._phases = work, phases

    def wait(self, *args: Any, **keywords: Any) -> Any:
        with self._phases("reduce"):
            return self._work.wait(*args, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
