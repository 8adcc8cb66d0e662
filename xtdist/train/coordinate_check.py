"""Whether activations keep their size when a model gets wider, which is what muP is for.

Example:
    >>> sizes = coordinate_check(model, AdamWConfig(lr=4e-3), widths=(64, 128, 256), steps=3)
    >>> slope((64, 128, 256), sizes["logits"])  # about 0: flat; 0.5: as the root of the width
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from xtdist.config import derive_seed
from xtdist.model import ModelConfig, muon_parameters
from xtdist.model.mup import at_width
from xtdist.model.wrapper import build_model
from xtdist.nn.attention.module import Attention
from xtdist.nn.feedforward.dense import FeedForward
from xtdist.nn.feedforward.moe import MoE
from xtdist.optim import AdamWConfig, MuonConfig, build_optimizer, set_lr


def coordinate_check(
    config: ModelConfig,
    optim: AdamWConfig | MuonConfig,
    *,
    widths: Sequence[int],
    steps: int,
    seed: int = 0,
) -> dict[str, list[float]]:
    """The mean |activation| of each attention and feed-forward layer, and of the logits, after
    ``steps`` updates on one batch of random tokens, for each of ``widths`` (2203.03466,
    appendix D.1).

    Raises:
        ConfigError: a width at which the model can't be.
    """
    found: dict[str, list[float]] = {}
    for width in widths:
        for name, size in _trained(at_width(config, width), optim, steps=steps, seed=seed).items():
            found.setdefault(name, []).append(size)
    return found


def best_losses(
    config: ModelConfig,
    optim: AdamWConfig | MuonConfig,
    batches: Callable[[int], Int[Tensor, "b n"]],
    *,
    rates: Sequence[float],
    steps: int,
    seed: int = 0,
) -> list[float]:
    """The mean loss over the last tenth of ``steps`` at each of ``rates``; ``batches`` gives the
    tokens of a step. Diverged runs have infinite loss."""
    losses = []
    for rate in rates:
        net, step = _training(config, dataclasses.replace(optim, lr=rate), seed=seed)
        last = [step(net, batches(i)) for i in range(steps)][-max(1, steps // 10) :]
        mean = sum(last) / len(last)
        losses.append(mean if math.isfinite(mean) else math.inf)
    return losses


def slope(widths: Sequence[int], sizes: Sequence[float]) -> float:
    """Of log size over log width, by least squares."""
    x, y = [math.log(w) for w in widths], [math.log(s) for s in sizes]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return over / sum((a - mean_x) ** 2 for a in x)


def _trained(
    config: ModelConfig, optim: AdamWConfig | MuonConfig, *, steps: int, seed: int
) -> Mapping[str, float]:
    net, step = _training(config, optim, seed=seed)
    generator = torch.Generator().manual_seed(derive_seed(seed, "tokens"))
    shape = (4, config.max_seq_len + 1)
    tokens = torch.randint(0, config.num_tokens, shape, generator=generator)
    for _ in range(steps):
        step(net, tokens)
    sizes: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            sizes[name] = float(getattr(out, "out", out).abs().mean())

        return hook

    for name, module in net.named_modules():
        if isinstance(module, (Attention, FeedForward, MoE)):
            module.register_forward_hook(watch(name))
    with torch.no_grad():
        sizes["logits"] = float(net(tokens[:, :-1]).abs().mean())
    return sizes


def _training(
    config: ModelConfig, optim: AdamWConfig | MuonConfig, *, seed: int
) -> tuple[nn.Module, Callable[[nn.Module, Tensor], float]]:
    """A model, and what trains it for a step and gives its loss."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "init"))
    net = build_model(config, generator=generator)
    optimizer = build_optimizer(optim, net, muon_parameters(net))
    set_lr(optimizer, optim.lr)

    def step(net: nn.Module, tokens: Tensor) -> float:
        logits = net(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return net, step
