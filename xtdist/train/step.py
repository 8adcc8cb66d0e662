"""One optimizer step: the global batch, cut by rank, cut into micro-batches, one update.

The loss is a sum over tokens divided by the token count of the whole step (all ranks, all
micro-batches), so neither the number of workers nor the accumulation changes it; with
``engine.reduction: canonical`` the number of workers changes not even a bit of anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xtdist.config import UserError, derive_seed
from xtdist.data import StepBatch
from xtdist.nn.attention.exchange import SequenceGroup
from xtdist.objective import LossOutput, Objective, Prepared
from xtdist.train.meters import Phases
from xtdist.train.reduction import (
    GivenGradient,
    Node,
    TreeSum,
    clip_,
    flat_gradient,
    micro_batches,
    sum_in_order,
    sum_on_first,
)
from xtdist.train.sequence import sliced
from xtdist.train.spec import RunSpec, Split

HELP = "Lower optim.lr, raise optim.schedule.warmup_steps, or look at this step's data"


class NonFiniteLossError(UserError):
    """The loss or its gradient became nan or infinite, on all ranks, before the update. What
    follows is ``stability.non_finite``'s to say; shown to the user if the run ends with it."""


class TrainModule(nn.Module):
    """What DeepSpeed wraps: its forward is the objective's loss, as plain tensors, among which
    ZeRO-3 finds the ones to hook its backward pass to."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, prepared: Prepared | Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum, weight and metrics of :class:`LossOutput`. A tensor is the gradient of all trainable
        parameters: the sum is then 0 and has that gradient."""
        if isinstance(prepared, Tensor):
            zero: Tensor = GivenGradient.apply(prepared, *self.trainable)
            return zero, zero.detach(), {}
        out = self.objective.losses(prepared)
        return out.sum, out.weight, out.metrics

    @property
    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]


@dataclass(frozen=True)
class StepResult:
    """Loss is the mean over the step's target tokens; ``stop``: some rank was asked to stop.
    ``wait_s``: what this rank waited for its data. ``tokens``: of the step, of all ranks."""

    loss: float
    metrics: dict[str, float]
    grad_norm: float
    stop: bool
    wait_s: float
    tokens: int


class _Sums(NamedTuple):
    """Over the whole step: the divisor, the loss and the metrics by name; the gradient's norm."""

    weight: Tensor
    names: list[str]
    values: Tensor
    norm: float
    stop: bool


@dataclass(frozen=True)
class Stepper:
    """Runs steps and validations on one rank. ``engine`` is DeepSpeed's; ``sequence``: the ranks
    that share its sequences."""

    engine: Any
    objective: Objective
    spec: RunSpec
    device: torch.device
    phases: Phases
    sequence: SequenceGroup | None = None

    def step(self, batch: StepBatch, *, stop_wanted: bool) -> StepResult:
        """Forward, backward and update for one global batch. All ranks call it together.

        Raises:
            NonFiniteLossError: on all ranks, before the update.
        """
        sums = self._canonical if self.spec.engine.reduction == "canonical" else self._fast
        with sliced(self.objective, self.sequence):
            found = sums(batch, stop_wanted=stop_wanted)
        loss, *metrics = (found.values / found.weight).tolist()
        return StepResult(
            loss=loss,
            metrics=dict(zip(found.names, metrics, strict=True)),
            grad_norm=found.norm,
            stop=found.stop,
            wait_s=batch.wait_s,
            tokens=batch.step_rows * self.spec.data.seq_len,
        )

    def _fast(self, batch: StepBatch, *, stop_wanted: bool) -> _Sums:
        """The engine accumulates and reduces, in its own order."""
        prepared, world = self._prepare(batch, "noise"), dist.get_world_size()
        weight = self._all_reduce(prepared.weight.detach().double()).clamp_min(1e-12)
        names: list[str] = []
        totals, last = None, False
        for micro, last in self._micro_batches(prepared, batch):
            # Told each time: a step may have any number of micro-batches.
            self.engine.set_gradient_accumulation_boundary(last)
            with self.phases("forward"):
                out = LossOutput(*self._forward(self.engine, micro, batch))
            with self.phases("backward"):
                scale = (world / weight).to(out.sum.dtype)
                self.engine.backward(out.sum * scale, scale_wrt_gas=False)
            names, values = _flatten(out)
            totals = values if totals is None else totals + values
        assert totals is not None
        flag = totals.new_tensor([float(stop_wanted)])
        *summed, stop = self._all_reduce(torch.cat([totals, flag]))
        values = self._checked(torch.stack(summed), batch.step)
        with self.phases("optimizer"):
            norm = self._clip_replicated()
            self.engine.step()
            norm = self.engine.get_global_grad_norm() if norm is None else norm
        return _Sums(weight, names, values, self._finite(float(norm), batch.step), bool(stop > 0))

    def _canonical(self, batch: StepBatch, *, stop_wanted: bool) -> _Sums:
        """All sums in an order that does not depend on the number of ranks: slow and exact."""
        shares = self._shares(batch)
        mine = shares[dist.get_rank()]
        parts = [micro for micro, _ in self._micro_batches(self._prepare(batch, "noise"), batch)]
        parts = parts[: max(len(mine), 1)]  # a rank without any takes part for the names alone
        weight = self._in_order([part.weight.double()[None] for part in parts], batch)[0]
        weight = weight.clamp_min(1e-12)
        names: list[str] = []
        tree, rows = TreeSum(), []
        parameters = self.engine.module.trainable
        for number, part in enumerate(parts, start=mine.start):
            with self.phases("forward"):
                out = LossOutput(*self._forward(self.engine.module, part, batch))
            with self.phases("backward"):
                gradient = flat_gradient(out.sum / weight.to(out.sum.dtype), parameters)
            names, values = _flatten(out)
            rows.append(values)
            if number in mine:
                tree.add(Node(number, 1, gradient))
        summed = self._in_order(rows, batch)
        with self.phases("reduce"):
            total = sum_on_first(tree, shares, gradient)
        stop = self._all_reduce(summed.new_tensor([float(stop_wanted)]))
        values = self._checked(summed, batch.step)
        with self.phases("optimizer"):
            norm = self._apply(torch.zeros_like(gradient) if total is None else total, batch.step)
        return _Sums(weight, names, values, norm, bool(stop > 0))

    def _apply(self, gradient: Tensor, step: int) -> float:
        """Clip the whole gradient, which rank 0 has and the others give as zeros, and update."""
        norm = clip_(gradient, self.spec.optim.grad_clip)
        norm = float(self._all_reduce(gradient.new_tensor([norm], dtype=torch.float64)))
        self._finite(norm, step)
        self.engine.set_gradient_accumulation_boundary(is_boundary=True)
        nothing, _, _ = self.engine(gradient)
        self.engine.backward(nothing, scale_wrt_gas=False)
        self.engine.step()
        return norm

    @torch.no_grad()
    def validate(self, batches: Iterator[StepBatch]) -> tuple[float, float]:
        """Sum of losses (nats) and of weights over ``batches``, all ranks together."""
        self.engine.eval()
        canonical = self.spec.engine.reduction == "canonical"
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            prepared = self._prepare(batch, "validation")
            rows = []
            with sliced(self.objective, self.sequence):
                for micro, _ in self._micro_batches(prepared, batch):
                    out = LossOutput(*self.engine(micro))
                    rows.append(torch.stack([out.sum.double(), out.weight.double()]))
            total += self._in_order(rows, batch) if canonical else torch.stack(rows).sum(0)
        self.engine.train()
        total = total if canonical else self._all_reduce(total)
        return float(total[0]), float(total[1])

    def _forward(self, module: nn.Module, micro: Prepared, batch: StepBatch) -> Any:
        """The same dropout wherever and however a micro-batch that begins so is computed; another
        one for each slice of its sequences."""
        which: tuple[int, ...] = (batch.step, int(micro.sample_ids[0]))
        if self.sequence is not None:
            which = (*which, self.sequence.rank)
        torch.manual_seed(derive_seed(self.spec.seed, "dropout", *which))
        return module(micro)

    def _prepare(self, batch: StepBatch, purpose: str) -> Prepared:
        training = purpose == "noise"
        tokens, ids = batch.tokens, torch.from_numpy(batch.sample_ids)
        documents = batch.documents
        if not len(tokens):  # nothing for this rank: one row that weighs nothing
            tokens, ids = tokens.new_zeros(1, self.spec.data.seq_len + 1), ids.new_zeros(1)
            documents = None
        if training:
            length = self.spec.batch.row_len(batch.data_step, seq_len=self.spec.data.seq_len)
            parts = self.spec.data.seq_len // length
            tokens = _cut(tokens, length)
            documents = None if documents is None else _cut(documents, length)
            ids = (ids[:, None] * parts + torch.arange(parts)).flatten()
        prepared = self.objective.prepare(
            tokens,
            seed=derive_seed(self.spec.seed, purpose, batch.step if training else 0),
            sample_ids=ids,
            documents=documents,
        )
        if self.sequence is not None:
            prepared = prepared.slice_of(self.sequence.rank, self.sequence.size)
        return (prepared if len(batch.tokens) else prepared.muted()).to(self.device)

    def _split(self, batch: StepBatch) -> Split:
        return self.spec.split(dist.get_world_size(), rows=batch.step_rows)

    def _micro_batches(
        self, prepared: Prepared, batch: StepBatch
    ) -> Iterator[tuple[Prepared, bool]]:
        """As many parts on each rank, and whether one is the last; a rank that has run out of rows
        repeats one with weight 0, so that all ranks take part in every collective."""
        split = self._split(batch)
        size = split.micro_batch * (len(prepared) // max(len(batch.tokens), 1))
        for i in range(split.accumulation):
            part = prepared[i * size : (i + 1) * size]
            yield (part if len(part) else prepared[:1].muted()), i == split.accumulation - 1

    def _all_reduce(self, tensor: Tensor) -> Tensor:
        with self.phases("reduce"):
            tensor = tensor.clone()
            dist.all_reduce(tensor)
            return tensor

    def _in_order(self, rows: list[Tensor], batch: StepBatch) -> Tensor:
        """The sum over the step's micro-batches; ``rows``: [k] of each of this rank's."""
        shares = self._shares(batch)
        mine, count = shares[dist.get_rank()], shares[-1].stop
        with self.phases("reduce"):
            return sum_in_order(torch.stack(rows)[: len(mine)], mine, count)

    def _shares(self, batch: StepBatch) -> list[range]:
        """The numbers of every rank's micro-batches in the step."""
        size, world = self._split(batch).unit, dist.get_world_size()
        return [
            micro_batches(batch.step_rows, size=size, rank=r, world=world) for r in range(world)
        ]

    def _checked(self, summed: Tensor, step: int) -> Tensor:
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


def _cut(rows: Tensor, length: int) -> Tensor:
    """[b, L + 1] → [b · L / length, length + 1]: each row's last token is the next one's first, as
    a target here and as an input there."""
    return rows.unfold(1, length + 1, length).flatten(0, 1)
