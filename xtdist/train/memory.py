"""Running out of memory, in words that help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from xtdist.config import ResourceError

HELP = (
    "Lower batch.micro_batch_tokens (the same numbers come out, in more forward passes), take "
    "a higher engine.zero_stage or more workers, or a smaller model"
)


@contextmanager
def explained(*, worth_a_restart: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Say what to do when the device or the host has no more memory.

    Raises:
        ResourceError: a repetition would need as much, so the run is not started again.
        RuntimeError: with the same words, where a restart may help: what was enough for steps
            before was lost to fragmentation, or to another process.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as e:
        which = "the GPU's" if isinstance(e, torch.OutOfMemoryError) else "this machine's"
        text = f"{which} memory is full: {str(e).split('. ')[0] or 'no more'}. {HELP}"
        raise (RuntimeError if worth_a_restart() else ResourceError)(text) from e
