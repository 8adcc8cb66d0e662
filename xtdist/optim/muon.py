"""Muon over what ZeRO leaves on a rank, with AdamW for everything that is no hidden matrix.

DeepSpeed gives its client optimizer flat fp32 tensors, of which each rank holds a part, and steps
group by group (stage 3: sub-group by sub-group) with gradients that are reduced and clipped. Muon
needs whole matrices, so here ``step`` is collective: momentum is updated where it is, and every
matrix that is cut goes to one of the ranks that hold it, is made orthogonal there, and comes back.
So all stages, any accumulation and any world size give the same update.

Not used: DeepSpeed's own Muon, which clips the orthogonal update instead of the gradient, takes a
joint projection for one matrix, and accumulates wrongly under ZeRO-3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from xtdist.optim.groups import Matrices
from xtdist.optim.newton_schulz import orthogonal
from xtdist.optim.plan import FlatLike, Plan, Unit, plans_of, units_of


class Muon(torch.optim.AdamW):
    """Groups whose ``algorithm`` is ``muon`` are updated as in
    https://kellerjordan.github.io/posts/muon, with state ``momentum_buffer``; others as by AdamW.

    matrices: what the parameters of those groups hold. Under DeepSpeed call :meth:`attach` before
    the first step.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, matrices: Sequence[Matrices], **adamw: Any
    ) -> None:
        super().__init__(groups, **adamw)
        units = {id(m.parameter): units_of(m) for m in matrices}
        wanted = [p for g in self.param_groups if g["algorithm"] == "muon" for p in g["params"]]
        self._by_parameter: dict[int, tuple[Unit, ...]] = {id(p): units[id(p)] for p in wanted}
        self._plans = {id(p): Plan.whole(units[id(p)]) for p in wanted}
        self._device: torch.device | None = None
        self.updated = 0  # matrices that this rank has made orthogonal

    @property
    def matrices(self) -> int:
        """How many there are; after an update of all of them the sum of ``updated`` over ranks has
        grown by so many, times the world size where every rank holds everything."""
        return sum(len(u.widths) for units in self._by_parameter.values() for u in units)

    def attach(
        self,
        flats: Sequence[FlatLike],
        parameters: Mapping[str, Tensor],
        *,
        device: torch.device | None = None,
    ) -> None:
        """Say where the parameters are now: ``parameters`` are the given ones by the names that
        ``flats`` use. All ranks call it, with the same flats in the same order. ``device``
        computes (flats may be offloaded).

        Raises:
            RuntimeError: the flats don't hold every matrix.
        """
        units = {
            name: self._by_parameter[id(p)]
            for name, p in parameters.items()
            if id(p) in self._by_parameter
        }
        self._plans = plans_of(flats, units)
        self._device = device
        held = sum(plan.matrices for plan in self._plans.values())
        if held != self.matrices:
            raise RuntimeError(f"Muon has {self.matrices} matrices and the engine holds {held}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update. Collective where matrices are cut."""
        assert closure is None, "DeepSpeed knows none"
        everything = self.param_groups
        for group in everything:
            if group["algorithm"] == "muon":
                for p in group["params"]:
                    if p.grad is not None:
                        self._update(p, group)
        self.param_groups = [g for g in everything if g["algorithm"] != "muon"]
        try:
            super().step()
        finally:
            self.param_groups = everything

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        plan = self._plans.get(id(p))
        if plan is None:
            if p.grad.any():
                raise RuntimeError("a tensor that holds matrices is unknown: call attach() first")
            return  # DeepSpeed's trial step on zeros, to make the optimizer's state
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        momentum = state["momentum_buffer"]
        momentum.lerp_(p.grad, 1 - group["momentum"])
        towards = p.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        update = self._orthogonal(towards.flatten().to(self._device or p.device), plan, group)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update.to(p.device).view_as(p), alpha=-group["lr"])

    def _orthogonal(self, towards: Tensor, plan: Plan, group: dict[str, Any]) -> Tensor:
        """The whole update of this rank's part. ``towards`` is (n,) as is what is given back."""
        sent = torch.cat([towards.new_empty(0), *(towards[at : at + n] for at, n in plan.send)])
        got = towards.new_empty(sum(plan.receive_sizes))
        if plan.cut:
            dist.all_to_all_single(got, sent, list(plan.receive_sizes), list(plan.send_sizes))
        update = torch.zeros_like(towards)  # padding stays zero
        for unit, local, remote in plan.jobs:
            matrix = towards.new_empty(unit.rows * unit.cols)
            for source, pieces in ((towards, local), (got, remote)):
                for at, offset, n in pieces:
                    matrix[offset : offset + n] = source[at : at + n]
            matrix = _scaled(matrix.view(unit.rows, unit.cols), unit, group).flatten()
            for target, pieces in ((update, local), (got, remote)):
                for at, offset, n in pieces:
                    target[at : at + n] = matrix[offset : offset + n]
            self.updated += len(unit.widths)
        if plan.cut:
            dist.all_to_all_single(sent, got, list(plan.send_sizes), list(plan.receive_sizes))
        done = 0
        for at, n in plan.send:
            update[at : at + n] = sent[done : done + n]
            done += n
        return update

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's looks for its keys everywhere


def _scaled(matrix: Tensor, unit: Unit, group: dict[str, Any]) -> Tensor:
    """The update of the matrices side by side in ``matrix``."""
    done = []
    for part in matrix.split(unit.widths, dim=1):
        out, into = part.shape if unit.outputs_first else part.shape[::-1]
        if group["scale"] == "original":
            scale = math.sqrt(max(1, out / into))
        else:
            scale = 0.2 * math.sqrt(max(out, into))
        part = orthogonal(part, steps=group["ns_steps"], precision=group["ns_precision"])
        done.append(part * scale)
    return torch.cat(done, dim=1)
