"""One optimizer step: the global batch, cut by rank, cut into micro-batches, one update.

The loss is a sum over tokens divided by the token count of the whole step (all ranks, all
micro-batches), so neither the number of workers nor the accumulation changes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xtdist.config import UserError, derive_seed
from xtdist.data import StepBatch
from xtdist.objective import LossOutput, Objective, Prepared
from xtdist.train.meters import Phases
from xtdist.train.spec import RunSpec, Split

HELP = "Lower optim.lr, raise optim.schedule.warmup_steps, or look at this step's data"


class NonFiniteLossError(UserError):
    """The loss or its gradient became nan or infinite. A repetition would do the same, so it is
    shown to the user and not retried; the newest checkpoint is of before it."""


class TrainModule(nn.Module):
    """What DeepSpeed wraps: its forward is the objective's loss, as plain tensors, among which
    ZeRO-3 finds the ones to hook its backward pass to."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, prepared: Prepared) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum, weight and metrics of :class:`LossOutput`."""
        out = self.objective.losses(prepared)
        return out.sum, out.weight, out.metrics


@dataclass(frozen=True)
class StepResult:
    """Loss is the mean over the step's target tokens; ``stop``: some rank was asked to stop.
    ``wait_s``: what this rank waited for its data."""

    loss: float
    metrics: dict[str, float]
    grad_norm: float
    stop: bool
    wait_s: float


@dataclass(frozen=True)
class Stepper:
    """Runs steps and validations on one rank. ``engine`` is DeepSpeed's."""

    engine: Any
    objective: Objective
    spec: RunSpec
    split: Split
    device: torch.device
    phases: Phases

    def step(self, batch: StepBatch, *, stop_wanted: bool) -> StepResult:
        """Forward, backward and update for one global batch. All ranks call it together.

        Raises:
            NonFiniteLossError: on all ranks, before the update.
        """
        world, accumulation = dist.get_world_size(), self.split.accumulation
        prepared = self._prepare(batch, "noise")
        weight = self._all_reduce(prepared.weight.detach().double()).clamp_min(1e-12)
        totals: Tensor | None = None
        names: list[str] = []
        for micro, last in self._micro_batches(prepared):
            torch.manual_seed(
                derive_seed(self.spec.seed, "dropout", batch.step, int(micro.sample_ids[0]))
            )
            with self.phases("forward"):
                out = LossOutput(*self.engine(micro))
            with self.phases("backward"):
                self.engine.backward(out.sum * (world * accumulation / weight).to(out.sum.dtype))
            names, values = _flatten(out)
            totals = values if totals is None else totals + values
            if last:
                summed = self._check(totals, batch.step, stop_wanted=stop_wanted)
            with self.phases("optimizer"):
                norm = self._clip_replicated() if last else None
                self.engine.step()
        loss = float(summed[0] / weight)
        shown = {n: float(v / weight) for n, v in zip(names, summed[1:-1], strict=True)}
        return StepResult(
            loss=loss,
            metrics=shown,
            grad_norm=self._finite(
                float(self.engine.get_global_grad_norm() if norm is None else norm), batch.step
            ),
            stop=bool(summed[-1] > 0),
            wait_s=batch.wait_s,
        )

    @torch.no_grad()
    def validate(self, batches: Iterator[StepBatch]) -> tuple[float, float]:
        """Sum of losses (nats) and of weights over ``batches``, all ranks together."""
        self.engine.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            prepared = self._prepare(batch, "validation")
            for micro, _ in self._micro_batches(prepared):
                out = LossOutput(*self.engine(micro))
                total += torch.stack([out.sum.double(), out.weight.double()])
        self.engine.train()
        total = self._all_reduce(total)
        return float(total[0]), float(total[1])

    def _prepare(self, batch: StepBatch, purpose: str) -> Prepared:
        step = batch.step if purpose == "noise" else 0
        tokens, ids = batch.tokens, torch.from_numpy(batch.sample_ids)
        documents = batch.documents
        if not len(tokens):  # nothing for this rank: one row that weighs nothing
            tokens, ids = tokens.new_zeros(1, self.spec.data.seq_len + 1), ids.new_zeros(1)
            documents = None
        prepared = self.objective.prepare(
            tokens,
            seed=derive_seed(self.spec.seed, purpose, step),
            sample_ids=ids,
            documents=documents,
        )
        return (prepared if len(batch.tokens) else prepared.muted()).to(self.device)

    def _micro_batches(self, prepared: Prepared) -> Iterator[tuple[Prepared, bool]]:
        """``accumulation`` parts; a rank that has run out of rows repeats one with weight 0, so
        that all ranks take part in every collective."""
        size, count = self.split.micro_batch, self.split.accumulation
        for i in range(count):
            part = prepared[i * size : (i + 1) * size]
            yield (part if len(part) else prepared[:1].muted()), i == count - 1

    def _all_reduce(self, tensor: Tensor) -> Tensor:
        with self.phases("reduce"):
            tensor = tensor.clone()
            dist.all_reduce(tensor)
            return tensor

    def _check(self, totals: Tensor, step: int, *, stop_wanted: bool) -> Tensor:
        flag = torch.tensor([float(stop_wanted)], dtype=torch.float64, device=totals.device)
        summed = self._all_reduce(torch.cat([totals, flag]))
        if not torch.isfinite(summed).all():
            raise NonFiniteLossError(
                f"the loss of step {step} is not finite; the update was not applied. {HELP}"
            )
        return summed

    def _clip_replicated(self) -> Tensor | None:
        """DeepSpeed's wrapped optimizers clip and tell the norm. fp32 at stage 0 has no wrapper:
        every rank holds the whole gradient, and it is clipped here."""
        if not isinstance(self.engine.optimizer, torch.optim.Optimizer):
            return None
        limit = self.spec.optim.grad_clip or math.inf
        return torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), limit)

    def _finite(self, norm: float, step: int) -> float:
        """fp16 skips an update whose gradient overflowed and lowers its loss scale; anything else
        must have a finite gradient."""
        if not math.isfinite(norm) and self.spec.engine.precision != "fp16":
            raise NonFiniteLossError(
                f"the gradient of step {step} is not finite (its loss is). {HELP}; the newest "
                "checkpoint is of before it"
            )
        return norm


def _flatten(out: LossOutput) -> tuple[list[str], Tensor]:
    names = sorted(out.metrics)
    parts = [out.sum.detach(), *(out.metrics[n].detach() for n in names)]
    return names, torch.stack([p.double() for p in parts])
