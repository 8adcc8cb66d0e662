"""Muon and AdamW on whole parameters, written from the formulas, block after block."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from xtdist.model import muon_parameters
from xtdist.optim import MuonConfig


class ReferenceMuon:
    """The optimizer of ``config`` for ``net``; set the rate in ``param_groups``."""

    def __init__(self, config: MuonConfig, net: nn.Module) -> None:
        self.config = config
        self.matrices = {id(m.parameter): m for m in muon_parameters(net)}
        self.parameters = list(net.parameters())
        hidden = [p for p in self.parameters if id(p) in self.matrices]
        self.momentum = {id(p): torch.zeros_like(p) for p in hidden}
        rest = {n: p for n, p in net.named_parameters() if id(p) not in self.matrices}
        decayed = [
            p
            for n, p in rest.items()
            if "embedding" not in n and sum(size > 1 for size in p.shape) > 1
        ]
        ids = {id(p) for p in decayed}
        others = [p for p in rest.values() if id(p) not in ids]
        decay = config.adamw_weight_decay
        self.adamw = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}],
            betas=config.betas,
            eps=config.eps,
        )
        self.param_groups: list[dict[str, float]] = [{"lr": config.lr}]

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        config, lr = self.config, self.param_groups[0]["lr"]
        for p in self.parameters:
            if id(p) not in self.matrices or p.grad is None:
                continue
            m = self.momentum[id(p)]
            m.copy_(config.momentum * m + (1 - config.momentum) * p.grad)
            towards = m
            if config.nesterov:
                towards = config.momentum * m + (1 - config.momentum) * p.grad
            found = self.matrices[id(p)]
            done = torch.cat(
                [self._update(b, found.axis) for b in found.blocks(towards)], found.axis
            )
            p.copy_(p * (1 - lr * config.weight_decay) - lr * done)
        for group in self.adamw.param_groups:
            group["lr"] = lr * (config.adamw_lr or config.lr) / config.lr
        self.adamw.step()

    def _update(self, block: Tensor, axis: int) -> Tensor:
        if block.ndim == 3:
            return torch.stack([self._update(b, axis - 1) for b in block])
        out, into = block.shape[axis], block.shape[1 - axis]
        original = math.sqrt(max(1.0, out / into))
        scale = original if self.config.scale == "original" else 0.2 * math.sqrt(max(out, into))
        return scale * newton_schulz(block, self.config.ns_steps)


def newton_schulz(block: Tensor, steps: int) -> Tensor:
    """aX + bXX^TX + cXX^TXX^TX, again and again, without transposing."""
    x = block / (block.norm() + 1e-12)
    for _ in range(steps):
        third = x @ x.T @ x
        x = 3.4445 * x - 4.7750 * third + 2.0315 * (x @ x.T @ third)
    return x
