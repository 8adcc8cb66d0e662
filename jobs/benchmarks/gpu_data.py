"""What must hold of batches on a GPU, and how fast they come there."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator

import numpy as np
import torch
from gpu_checks import Row


def batches(device: str, *, quick: bool) -> Iterator[Row]:
    """Ids of both widths reach the device as they are, whatever is computed beside; none is
    written over while its copy is under way."""
    if importlib.util.find_spec("pyarrow") is None:
        yield Row("pyarrow", "not installed")
        return
    from xtdist.data.ring import Shape, make_buffers

    rows, width, takes = (4, 33, 8) if quick else (64, 2049, 200)
    for dtype in (np.uint16, np.uint32):
        shape = Shape(rows=rows, width=width, dtype=np.dtype(dtype), documents=True)
        buffers = make_buffers(shape, torch.device(device))
        generator = np.random.default_rng(0)
        busy = torch.randn(64 if quick else 4096, 64 if quick else 4096, device=device)
        wanted, found = [], []
        began = time.perf_counter()
        for _ in range(takes):
            tokens, documents = buffers.take()
            assert documents is not None
            tokens[:] = generator.integers(0, np.iinfo(dtype).max, tokens.shape, dtype)
            documents[:] = generator.integers(-9, 99, documents.shape, np.int32)
            wanted.append((int(tokens.sum(dtype=np.int64)), int(documents.sum(dtype=np.int64))))
            sent = buffers.send(slice(0, rows))
            busy = torch.tanh(busy @ busy)
            buffers.receive(sent)
            assert sent.documents is not None
            found.append((sent.tokens.sum(), sent.documents.long().sum()))
        got = [(int(a), int(b)) for a, b in found]
        seconds = time.perf_counter() - began
        wrong = sum(a != b for a, b in zip(got, wanted, strict=True))
        rate = takes * rows * width / seconds / 1e6
        text = f"{wrong} of {takes} batches differ; {rate:,.0f} M ids/s, drawing them included"
        yield Row(f"batches of {np.dtype(dtype)}", text, wrong > 0)
