"""The forward pass of one step: a flat batch of all sequences' new tokens through a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.decode.kv_cache import KVStore, Segment, StepCache, positions_of
from xtdist.decode.scheduler import Work


class Runner:
    """Runs one model over its own store of keys and values."""

    def __init__(self, model: nn.Module, store: KVStore) -> None:
        self.model = model
        self.store = store

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def run(self, work: Sequence[Work]) -> Float[Tensor, "r v"]:
        """fp32 logits of the last token of every work that completes its sequence, in order.

        Tables must have room. Their ``length`` stays: the caller moves it once all models have run.
        """
        tokens: list[int] = []
        segments: list[Segment] = []
        wanted: list[int] = []
        for w in work:
            computed, start = w.sequence.table.length, len(tokens)
            tokens += w.sequence.tokens[computed : computed + w.count]
            segments.append(Segment(w.sequence.table, start, len(tokens)))
            if w.completes:
                wanted.append(len(tokens) - 1)
        device = self.device
        with evaluating(self.model):
            logits: Tensor = self.model(
                torch.tensor([tokens], device=device),
                pos=torch.tensor([positions_of(segments)], device=device),
                cache=StepCache(self.store, segments, device),
                logit_rows=torch.tensor(wanted, dtype=torch.long, device=device),
            )
        return logits.float()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the while; exactly the modules that were training train afterwards."""
    training = [m for m in model.modules() if m.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
